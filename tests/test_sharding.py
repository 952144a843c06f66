"""Parameters spread over processes, with the sharding of PyTorch itself: refused where a rule sees whole tensors."""

import pytest
import torch
import torch.distributed as dist
from own_loop import lstm
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import AdamController, PerCoordinateMLP
from lightning_l2l.sharding import finite_everywhere

WHOLE = [AdamController, PerCoordinateMLP]


@pytest.fixture
def two_processes():
    """One of two processes, the other of which is only pretended."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.fixture
def one_process():
    """A real one, alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize("rule", [*WHOLE, lstm])
def test_fully_sharded_parameters_are_refused_in_one_sentence(rule):
    model = fully_shard(nn.Linear(8, 4), mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(ValueError, match=r"^[^\n]*a parameter is a DTensor[^\n]*: use DistributedDataParallel$"):
        LearnedOptimizer(model.parameters(), rule())


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize("original", [True, False])
def test_flattened_parameters_are_refused_unless_the_rule_is_coordinatewise(original):
    settings = {"use_orig_params": original, "device_id": torch.device("cpu")}
    model = FullyShardedDataParallel(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), **settings)
    for rule in WHOLE:
        with pytest.raises(ValueError, match=r"^[^\n]*has flattened a parameter: use DistributedDataParallel$"):
            LearnedOptimizer(model.parameters(), rule())
    LearnedOptimizer(model.parameters(), lstm())


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("rule", [lstm, lambda: lstm(momenta=[0.9])])
def test_fsdp_gathers_and_spreads_states(original, rule):
    """By ``optim_state_dict``, which takes what has a parameter's own shape; two_processes.py has it in two."""
    rule = rule()

    def make():
        torch.manual_seed(1)
        layers = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
        model = FullyShardedDataParallel(layers, use_orig_params=original, device_id=torch.device("cpu"))
        return model, LearnedOptimizer(model.parameters(), rule)

    def train(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(3, 8)).square().sum().backward()
        optimizer.step()

    model, optimizer = make()
    train(model, optimizer)
    saved = FullyShardedDataParallel.optim_state_dict(model, optimizer)
    assert {value.shape for value in saved["state"]["0.weight"].values()} == {(4, 8)}
    other, resumed = make()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(other, resumed, saved))
    train(model, optimizer)
    train(other, resumed)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.usefixtures("two_processes")
def test_an_optimizer_in_a_zero_redundancy_optimizer_knows_of_it():
    params = list(nn.Linear(8, 4).parameters())
    zero = ZeroRedundancyOptimizer(params, LearnedOptimizer, rule=lstm())
    alone = LearnedOptimizer(params, lstm())
    assert zero.optim._zero is zero.process_group and alone._zero is None
    asked = finite_everywhere(True, [], zero.optim._zero)  # of which the pretended process does nothing
    assert asked and not finite_everywhere(False, params, zero.optim._zero)
    assert finite_everywhere(True, params, alone._zero)
