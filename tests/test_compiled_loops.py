"""A model that ``torch.compile`` has compiled, in a training loop."""

import torch
from own_loop import theta
from test_everyday_loops import adam_controller, batch, network, squared_error

from lightning_l2l import LearnedOptimizer


def test_the_steps_are_those_without_compilation():
    """With a backend that needs no compiler; names then begin with ``_orig_mod``, which changes nothing."""
    thetas = []
    for compiled in (False, True):
        model = network()
        named = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = LearnedOptimizer(named.named_parameters(), adam_controller())
        for number in range(10):
            optimizer.zero_grad()
            squared_error(named, batch(number)).backward()
            optimizer.step()
        thetas.append(theta(model))
    torch.testing.assert_close(*thetas, rtol=1e-5, atol=1e-6)


def test_a_state_dict_goes_from_a_compiled_model_to_a_plain_one():
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = LearnedOptimizer(compiled.named_parameters(), adam_controller())
    squared_error(compiled, batch(0)).backward()
    optimizer.step()
    plain = network()
    plain.load_state_dict(model.state_dict())
    resumed = LearnedOptimizer(plain.named_parameters(), adam_controller())
    resumed.load_state_dict(optimizer.state_dict())
    for m, o in ((compiled, optimizer), (plain, resumed)):
        o.zero_grad()
        squared_error(m, batch(1)).backward()
        o.step()
    assert torch.equal(theta(model), theta(plain))
