"""One of two processes, which take the steps that one takes: ``python two_processes.py RANK FILE``."""

import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import ZeroRedundancyOptimizer

from lightning_l2l import LearnedOptimizer
from lightning_l2l.rules import AdamController, CoordinatewiseLSTM

RANK = int(sys.argv[1])
SETTINGS = {"lr": 0.5, "weight_decay": 0.01}


def controller() -> AdamController:
    rule = AdamController()
    for p in rule.parameters():
        nn.init.normal_(p, std=0.1)
    return rule


class Apart:
    """Each tensor by an optimizer of its own, which sees no other."""

    def __init__(self, parameters, rule):
        self.optimizers = [LearnedOptimizer([p], rule, **SETTINGS) for p in parameters]

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()


def assert_equal_in_both(p) -> None:
    both = [torch.empty_like(p) for _ in range(2)]
    dist.all_gather(both, p.detach())
    assert torch.equal(*both)


def trained(make, make_alone) -> list[nn.Parameter]:
    """Trains a network on half of each minibatch by DDP, and another on all of it, which should be alike."""
    model, alone = nn.Linear(6, 3), nn.Linear(6, 3)
    alone.load_state_dict(model.state_dict())
    model = nn.parallel.DistributedDataParallel(model)
    optimizers = make(model.parameters()), make_alone(alone.parameters())
    for batch in torch.randn(12, 8, 6):
        for m, optimizer, part in zip((model, alone), optimizers, (batch[4 * RANK :][:4], batch), strict=True):
            optimizer.zero_grad()
            m(part).square().mean().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
        assert_equal_in_both(p)
    return list(model.parameters())


def guards_decide_together(parameters, rule) -> None:
    """Where the loss of one process is not a number."""
    guarded = LearnedOptimizer(parameters, rule, guard=True)
    for number in range(3):
        guarded.observe(float("nan") if RANK == 1 and number == 1 else RANK)
        guarded.step()
    assert_equal_in_both(parameters[0])
    assert guarded.guard.triggers == 1 and guarded.guard.since == 2


def skipped_together(optimizer, model, steps: Callable[[], int]) -> None:
    """A gradient that is not finite in one process alone; the other must not step either."""
    for number, bad in enumerate((False, True, False)):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        model(torch.ones(4, 6)).square().mean().backward()
        own = [p.grad for p in model.parameters() if p.grad is not None and p.numel()]
        if bad and RANK == 1:
            own[-1].fill_(torch.nan)
        optimizer.step()
        same = all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
        assert same == bad, number
    assert steps() == 1


def zero_skips_together() -> None:
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3)))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), LearnedOptimizer, rule=controller(), guard=False)
    skipped_together(optimizer, model, lambda: optimizer.optim.skipped_steps)


def fsdp_skips_together_and_gathers_its_state() -> None:
    """What is gathered is compared in test_sharding.py: on CPUs, FSDP gives all states of a tensor the same memory."""
    layers = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3))
    model = FullyShardedDataParallel(layers, use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = LearnedOptimizer(model.parameters(), CoordinatewiseLSTM(hidden_size=3))
    skipped_together(optimizer, model, lambda: optimizer.skipped_steps)
    saved = FullyShardedDataParallel.optim_state_dict(model, optimizer)["state"]
    shapes = {name: {tuple(value.shape) for value in state.values()} for name, state in saved.items()}
    assert shapes == {"0.weight": {(3, 6)}, "0.bias": {(3,)}, "1.weight": {(3, 3)}, "1.bias": {(3,)}}


dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=RANK, world_size=2)
torch.manual_seed(0)
for rule in (CoordinatewiseLSTM(hidden_size=5), controller()):

    def whole(parameters, rule=rule):
        return LearnedOptimizer(parameters, rule, **SETTINGS)

    guards_decide_together(trained(whole, whole), rule)
trained(
    lambda p: ZeroRedundancyOptimizer(p, LearnedOptimizer, rule=rule, **SETTINGS),  # each process steps a tensor
    lambda p: Apart(p, rule),
)
zero_skips_together()
fsdp_skips_together_and_gathers_its_state()
dist.barrier()  # neither leaves while the other still talks to it
dist.destroy_process_group()
time.sleep(1)  # gloo's thread lets go of the last tensors, which aborts a process whose interpreter is gone by then
