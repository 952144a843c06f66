"""Fine-tuning starts from pretrained weights, the same each time, with fresh layers."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.optimizees import MLP, FineTuning, Table
from lightning_l2l.optimizees.sources.tensors import TensorExamples


def fine_tuning(network=None, loss=None, parts=(40, 10, 10), **settings) -> FineTuning:
    random = np.random.default_rng(0)
    inputs = torch.from_numpy(random.standard_normal((60, 13), dtype=np.float32))
    before = TensorExamples(inputs, torch.arange(60) % 3, {}, "noise").parted(parts)
    settings = {"pretraining_steps": 5, "fresh": ["3.*"], "batch_size": 8, "horizon": 2, "seed": 1} | settings
    network, loss = network or MLP(13, (4,), 3, "tanh"), loss or nn.CrossEntropyLoss()
    return FineTuning(network, loss, Table("wine"), before, **settings)


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


class Scaled(nn.Linear):
    """A module whose printed form does not show all of its settings."""

    def __init__(self, factor: float) -> None:
        super().__init__(13, 3)
        self.factor = factor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.factor * super().forward(inputs)


def test_what_a_network_or_loss_does_not_print_has_weights_of_its_own(tmp_path):
    settings = {"fresh": [], "root": str(tmp_path)}
    starts = [
        fine_tuning(network=Scaled(1.0), **settings),
        fine_tuning(network=Scaled(2.0), **settings),
        fine_tuning(network=Scaled(1.0), loss=nn.CrossEntropyLoss(label_smoothing=0.5), **settings),
        fine_tuning(network=Scaled(1.0), parts=(20, 20, 20), **settings),
    ]
    thetas = [one.episodes("test", [0]).theta for one in starts]
    assert len(list(tmp_path.iterdir())) == 4
    assert not any(torch.equal(thetas[0], other) for other in thetas[1:])


def test_an_autoencoder_is_pretrained_as_one(tmp_path):
    settings = {"network": nn.Linear(13, 13), "loss": nn.MSELoss(), "fresh": [], "root": str(tmp_path)}
    assert fine_tuning(reconstruct=True, **settings).episodes("test", [0]).theta.isfinite().all()


def test_dropout_in_pretraining_is_the_same_each_time(tmp_path):
    thetas = []
    for number in range(2):
        torch.manual_seed(number)
        network = nn.Sequential(nn.Linear(13, 4), nn.Dropout(0.5), nn.Linear(4, 3))
        data = fine_tuning(network=network, fresh=[], root=str(tmp_path / str(number)))
        thetas.append(data.episodes("test", [0]).theta)
    assert torch.equal(*thetas)
