"""Fine-tuning starts from pretrained weights, the same each time, with fresh layers."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import MLP, FineTuning, Table
from lightning_l2l.optimizees.sources.tensors import TensorExamples


def fine_tuning(**settings) -> FineTuning:
    random = np.random.default_rng(0)
    inputs = torch.from_numpy(random.standard_normal((60, 13), dtype=np.float32))
    before = TensorExamples(inputs, torch.arange(60) % 3, {}, "noise").parted((40, 10, 10))
    network = MLP(13, (4,), 3, "tanh")
    settings = {"pretraining_steps": 5, "fresh": ["3.*"], "batch_size": 8, "horizon": 2, "seed": 1} | settings
    return FineTuning(network, nn.CrossEntropyLoss(), Table("wine"), before, **settings)


def test_starts_share_all_but_the_fresh_layers(tmp_path):
    one, two = fine_tuning(root=str(tmp_path)).episodes("test", [0, 1]).theta
    body, fresh = slice(0, 13 * 4 + 4), slice(13 * 4 + 4, None)
    assert torch.equal(one[body], two[body]) and not torch.equal(one[fresh], two[fresh])


def test_pretraining_moves_the_weights_and_is_kept(tmp_path):
    starts = [fine_tuning(pretraining_steps=steps, root=str(tmp_path)).episodes("test", [0]).theta for steps in (5, 6)]
    assert not torch.equal(*starts)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    times = [file.stat().st_mtime_ns for file in files]
    again = fine_tuning(root=str(tmp_path)).episodes("test", [0]).theta
    assert torch.equal(again, starts[0]) and [file.stat().st_mtime_ns for file in files] == times
    fine_tuning(init_std=0.1, root=str(tmp_path)).setup("test")  # from other starts
    assert len(list(tmp_path.iterdir())) == 3
    for file in files:
        file.write_bytes(file.read_bytes()[:9])
    assert torch.equal(fine_tuning(root=str(tmp_path)).episodes("test", [0]).theta, starts[0])


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(InvalidInputError, match=r"data\.fresh has readout"):
        fine_tuning(fresh=["readout.*"])
