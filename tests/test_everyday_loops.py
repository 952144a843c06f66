"""What people do in their training loops, with rules that are made for any problem."""

import copy

import pytest
import torch
from own_loop import theta
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import Adam, AdamController, PerCoordinateMLP


def per_coordinate_mlp() -> PerCoordinateMLP:
    """Its output layer starts at zero, but here the MLP has to matter."""
    rule = PerCoordinateMLP(learning_rate=0.01)
    nn.init.normal_(rule.weights[-1], std=0.1)
    return rule


def adam_controller() -> AdamController:
    """Likewise; a linear path and an output layer of small random numbers change each of its controls."""
    torch.manual_seed(0)
    rule = AdamController()
    for parameter in (rule.W2, rule.b2, rule.Wl):
        nn.init.normal_(parameter, std=0.1)
    return rule


RULES = {
    "Adam": lambda: Adam(0.01, eps=1e-16),
    "PerCoordinateMLP": per_coordinate_mlp,
    "AdamController": adam_controller,
}


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]()


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def batch(number: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(size, 6, generator=torch.Generator().manual_seed(number))
    return inputs, inputs.prod(1, keepdim=True).tanh() + inputs[:, :1]


def squared_error(model, examples) -> torch.Tensor:
    return (model(examples[0]) - examples[1]).square().mean()


def trained(rule, steps=15, backward=lambda loss: loss.backward(), size=16, numbers=None):
    """A network after some steps; ``backward`` computes the gradients from the loss."""
    model = network()
    optimizer = LearnedOptimizer(model.named_parameters(), rule)
    for number in range(steps) if numbers is None else numbers:
        optimizer.zero_grad()
        backward(squared_error(model, batch(number, size)))
        optimizer.step()
    return model


def held_out(model) -> float:
    with torch.no_grad():
        return squared_error(model, batch(10_000, 500)).item()


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_the_losss_scale_does_not_matter(rule, factor):
    scaled = trained(rule, backward=lambda loss: (factor * loss).backward())
    torch.testing.assert_close(theta(scaled), theta(trained(rule)), rtol=1e-3, atol=1e-4)


def test_clipped_gradients_train(rule):
    model, before = network(), held_out(network())
    optimizer = LearnedOptimizer(model.parameters(), rule)
    for number in range(150):
        optimizer.zero_grad()
        squared_error(model, batch(number)).backward()
        assert nn.utils.clip_grad_norm_(model.parameters(), 1e-3) > 1e-3
        optimizer.step()
    assert held_out(model) < 0.5 * before


def test_accumulated_gradients_may_be_summed_or_averaged(rule):
    models = []
    for share in (1.0, 0.25, None):
        model = network()
        optimizer = LearnedOptimizer(model.parameters(), rule)
        for number in range(10):
            optimizer.zero_grad()
            inputs, targets = batch(number, 32)
            for part in zip(inputs.chunk(4), targets.chunk(4), strict=True) if share else ():
                (share * squared_error(model, part)).backward()
            if not share:
                squared_error(model, (inputs, targets)).backward()
            optimizer.step()
        models.append(theta(model))
    torch.testing.assert_close(models[0], models[2], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(models[1], models[2], rtol=1e-3, atol=1e-4)


def test_the_batch_size_may_change_in_the_middle(rule):
    """Each part of a run that is far from converged goes on from where the last one ended."""
    model, losses = network(), [held_out(network())]
    optimizer = LearnedOptimizer(model.parameters(), rule)
    for size in (16, 256, 8):
        for number in range(15):
            optimizer.zero_grad()
            squared_error(model, batch(number, size)).backward()
            optimizer.step()
        losses.append(held_out(model))
    assert losses == sorted(losses, reverse=True)


def test_a_step_that_the_gradient_scaler_skips_does_not_advance_time(rule):
    model = network()
    optimizer = LearnedOptimizer(model.named_parameters(), rule)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number in range(8):
        optimizer.zero_grad()
        loss = squared_error(model, batch(number))
        scaler.scale(loss * torch.inf if number in (0, 4) else loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(theta(model), theta(trained(rule, numbers=[1, 2, 3, 5, 6, 7])))


def test_tied_weights_count_once(rule):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4)
            self.decoder.weight = self.encoder.weight

        def forward(self, inputs):
            return self.decoder(self.encoder(inputs).tanh())

    tied, weight = Tied(), nn.Parameter(Tied().encoder.weight.detach().clone())
    biases = [nn.Parameter(layer.bias.detach().clone()) for layer in (tied.encoder, tied.decoder)]
    one, other = LearnedOptimizer(tied.parameters(), rule), LearnedOptimizer([weight, *biases], rule)
    for number in range(5):
        inputs = batch(number)[0][:, :4]
        hidden = nn.functional.linear(inputs, weight, biases[0]).tanh()
        for optimizer, output in ((one, tied(inputs)), (other, nn.functional.linear(hidden, weight, biases[1]))):
            optimizer.zero_grad()
            (output - inputs).square().mean().backward()
            optimizer.step()
    assert torch.equal(tied.encoder.weight, weight)


def test_sparse_gradients_are_refused_in_one_sentence(rule):
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"^[^\n]*does not support sparse gradients[^\n]*$"):
        LearnedOptimizer(table.parameters(), rule).step()


def test_lr_is_a_factor_of_each_group_with_warm_up_and_cosine(rule):
    model = network()
    first, last = list(model[0].parameters()), list(model[2].parameters())
    optimizer = LearnedOptimizer([{"params": first}, {"params": last, "lr": 0.5}], rule)
    warm_up = LinearLR(optimizer, start_factor=0.1, total_iters=5)
    cosine = CosineAnnealingLR(optimizer, 20)
    scheduler = SequentialLR(optimizer, [warm_up, cosine], milestones=[5])
    plain = network()
    reference = LearnedOptimizer([{"params": plain[0].parameters()}, {"params": plain[2].parameters()}], rule)
    for module, stepped in ((model, optimizer), (plain, reference)):
        squared_error(module, batch(0)).backward()
        stepped.step()
    for layer, factor in ((0, 0.1), (2, 0.05)):
        step, whole = (theta(module[layer]) - theta(network()[layer]) for module in (model, plain))
        torch.testing.assert_close(step, factor * whole, rtol=1e-2, atol=1e-7)
    for number in range(1, 26):
        scheduler.step()
        before = theta(model)
        optimizer.zero_grad()
        squared_error(model, batch(number)).backward()
        optimizer.step()
        assert torch.equal(theta(model), before) == (number == 25)  # the cosine has come down to zero
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]


def test_averaged_weights_may_be_swapped_in_and_out(rule):
    model = network()
    optimizer = LearnedOptimizer(model.named_parameters(), rule)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for number in range(15):
        optimizer.zero_grad()
        squared_error(model, batch(number)).backward()
        optimizer.step()
        averaged.update_parameters(model)
        own = copy.deepcopy(model.state_dict())
        model.load_state_dict(averaged.module.state_dict())
        held_out(model)
        model.load_state_dict(own)
    assert torch.equal(theta(model), theta(trained(rule)))
