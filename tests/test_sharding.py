"""Parts of tensors are refused where a rule sees whole ones, with the sharding of PyTorch itself."""

import pytest
import torch
import torch.distributed as dist
from own_loop import lstm
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import AdamController, PerCoordinateMLP

WHOLE = [AdamController, PerCoordinateMLP]


@pytest.fixture(autouse=True)
def two_processes():
    """One of two processes, the other of which is only pretended."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("rule", [*WHOLE, lstm])
def test_fully_sharded_parameters_are_refused_in_one_sentence(rule):
    model = fully_shard(nn.Linear(8, 4), mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(ValueError, match=r"^[^\n]*a parameter is a DTensor[^\n]*: use DistributedDataParallel$"):
        LearnedOptimizer(model.parameters(), rule())


@pytest.mark.parametrize("original", [True, False])
def test_flattened_parameters_are_refused_unless_the_rule_is_coordinatewise(original):
    settings = {"use_orig_params": original, "device_id": torch.device("cpu")}
    model = FullyShardedDataParallel(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), **settings)
    for rule in WHOLE:
        with pytest.raises(ValueError, match=r"^[^\n]*has flattened a parameter: use DistributedDataParallel$"):
            LearnedOptimizer(model.parameters(), rule())
    LearnedOptimizer(model.parameters(), lstm())
