"""Fine-tuning a network that was trained on other examples, as an optimizee."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_l2l.digests import content
from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.optimizees.module_episodes import ModuleEpisodes, layout
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.origin import Origin
from lightning_l2l.optimizees.sources.base import Source
from lightning_l2l.whole_files import replacing

LEARNING_RATE = 1e-3  # of Adam, in pretraining


class FineTuning(ModuleTraining):
    """Each episode starts from the same pretrained weights, except for fresh layers, and trains on new examples.

    The network is pretrained by Adam on ``pretraining_source`` when the weights are first needed, always from the same
    start on the same minibatches. They are kept in ``root``.

    Args:
        network: the module, for both sources.
        loss: see ``ModuleTraining``.
        source: the new examples.
        pretraining_source: what the network was trained on before.
        pretraining_steps: minibatches of ``batch_size`` in pretraining.
        fresh: patterns of the names of parameters that start afresh, such as those of the last layer.
        root: the folder that keeps the pretrained weights.
        kwargs: see ``ModuleTraining``.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        source: Source | str,
        pretraining_source: Source,
        pretraining_steps: int = 1000,
        fresh: Sequence[str] = ("readout.*",),
        root: str = "data",
        **kwargs: Any,
    ) -> None:
        super().__init__(network, loss, source, **kwargs)
        require_positive("data.pretraining_steps", pretraining_steps)
        for pattern in fresh:
            if not any(fnmatch(name, pattern) for name in layout(self.network)):
                raise InvalidInputError(
                    f"data.fresh has {pattern}, which fits no parameter of data.network: change it."
                )
        self.pretraining_source = pretraining_source
        self.pretraining_steps = pretraining_steps
        self.fresh = fresh
        self.root = Path(root)
        self.pretrained: Tensor | None = None

    def _start(self, random: np.random.Generator) -> Tensor:
        theta = super()._start(random)
        if self.pretrained is None:
            return theta  # while settings are tried, and in pretraining
        for name, place in layout(self.network).items():
            if not any(fnmatch(name, pattern) for pattern in self.fresh):
                theta[place.coordinates] = self.pretrained[place.coordinates]
        return theta

    @property
    def origin(self) -> Origin:
        """The examples, and the weights that the others have led to."""
        others = [] if self.pretrained is None else [content(self.pretrained)]
        return replace(super().origin, others=others)

    def setup(self, stage: str | None = None) -> None:
        """Loads the examples and the pretrained weights."""
        super().setup(stage)
        if self.pretrained is None:
            self.pretrained = self._pretrained()

    def _pretrained(self) -> Tensor:
        """The pretrained weights, [P], read from ``root`` or trained now."""
        shared = self.batch_size, self.init_std, self.reconstruct
        data = ModuleTraining(self.network, self.loss, self.pretraining_source, *shared, horizon=self.pretraining_steps)
        data.setup()
        episodes = data.training_runs("train", [0])
        file = self.root / f"pretrained_{digest(data, episodes)}.safetensors"
        try:
            return load_file(file)["theta"]
        except (OSError, SafetensorError, KeyError):
            rank_zero_info(f"Pretraining on {data.description}: {self.pretraining_steps} steps ...")
        theta = trained(episodes, data.horizon)
        self.root.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            save_file({"theta": theta}, part)
        return theta


def digest(data: ModuleTraining, episodes: ModuleEpisodes) -> str:
    """A digest of what pretrained weights depend on.

    The first loss and gradient stand for the network's and the loss's code and for settings that they do not print.

    Args:
        data: the training that makes them.
        episodes: its one run.
    """
    assert data.examples is not None
    ranges = sorted(data.examples.ranges.items())
    settings = [data.batch_size, data.init_std, data.reconstruct, data.horizon, LEARNING_RATE]
    with seeded():
        loss, gradient = episodes.value_and_grad(episodes.theta.clone(), 0)
    # to a few digits, since another number of threads adds in another order
    tried = f"{loss.item():.3e} {gradient.norm().item():.3e}"
    depends_on = [str(data.network), str(data.loss), repr(data.examples), ranges, *settings, tried]
    return hashlib.sha256(repr(depends_on).encode()).hexdigest()[:16]


def trained(episodes: ModuleEpisodes, steps: int) -> Tensor:
    """Trains the network of one episode by Adam, and returns its θ, [P]."""
    theta = episodes.theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], LEARNING_RATE)
    with seeded():
        for step in range(steps):
            theta.grad = episodes.value_and_grad(theta.detach(), step)[1]
            optimizer.step()
    return theta.detach()[0].clone()


@contextmanager
def seeded() -> Iterator[None]:
    """Takes gradients, whatever is being run, and draws the same dropout each time."""
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
