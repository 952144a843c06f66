"""What predict writes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from command_line import RUN, TINY_MNIST, tiny

from lightning_l2l.cli import main
from lightning_l2l.evaluation.predictions import Predictions
from lightning_l2l.optimizees import Quadratics


def test_predict_writes_what_was_optimized(fitted):
    main(tiny("predict", "--ckpt_path=best"))
    main(tiny("test", "--ckpt_path=best"))
    found = sorted((RUN / "predictions").iterdir())
    assert [path.name for path in found] == ["0000.npz", "0004.npz"]
    arrays = [np.load(path) for path in found]
    assert arrays[0]["theta"].shape == (4, 3)
    losses = np.concatenate([array["losses"] for array in arrays])
    with np.load(RUN / "curves.npz") as curves:
        np.testing.assert_allclose(losses.mean(0), curves["LSTM_mean"], rtol=1e-5)
    theta = torch.from_numpy(arrays[1]["theta"])
    episodes = Quadratics(dimension=3).episodes("test", range(4, 8))
    np.testing.assert_allclose(episodes.loss(theta, 10).numpy(), losses[4:, -1], rtol=1e-5)
    main(tiny("predict", "--ckpt_path=best", "--predictions.folder=elsewhere"))
    assert Path("elsewhere/0004.npz").is_file()


class Perceptron(torch.nn.Module):
    """A module of a user's own, with a setting."""

    def __init__(self, hidden: int):
        super().__init__()
        self.first, self.last = torch.nn.Linear(784, hidden), torch.nn.Linear(hidden, 10)

    def forward(self, images):
        return self.last(self.first(images.flatten(1)).relu())


def test_any_module_is_an_optimizee_from_the_command_line():
    network = "--data.network={class_path: test_predictions.Perceptron, init_args: {hidden: 3}}"
    flags = [flag for flag in TINY_MNIST if "hidden_sizes" not in flag]
    main(["fit", "--config", "mnist.yaml", *flags, network, "--data.init_std=null"])
    main(["predict", "--config", "mnist.yaml", *flags, network, "--data.init_std=null", "--ckpt_path=best"])
    with np.load("runs/mnist/version_0/predictions/0000.npz") as arrays:
        assert arrays["theta"].shape[1] == 785 * 3 + 4 * 10


def test_batches_that_are_drawn_whole_are_numbered_through(tmp_path):
    """Three batches of four episodes for two processes, of which the second repeats the first batch at its end."""
    predictions, batch = Predictions(str(tmp_path)), Quadratics(dimension=3).episodes("test", range(4))
    predictions.place = tmp_path
    trainer = SimpleNamespace(global_rank=1, world_size=2, datamodule=Quadratics())
    trainer.predict_dataloaders = SimpleNamespace(dataset=range(3), episodes_per_item=4)
    predictions.done = 0
    for _ in range(2):
        predictions.on_predict_batch_end(trainer, None, (batch.theta, torch.zeros(4, 11)), batch)
    assert [path.name for path in tmp_path.iterdir()] == ["0004.npz"]
    assert np.load(tmp_path / "0004.npz")["theta"].shape == (4, 3)
