"""Fine-tuning a network that was trained on other examples, as an optimizee."""

import hashlib
import os
from collections.abc import Sequence
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
from lightning_l2l.optimizees.module_episodes import layout
from lightning_l2l.optimizees.module_training import ModuleTraining
from lightning_l2l.optimizees.origin import Origin
from lightning_l2l.optimizees.sources.base import Source

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
        examples = self.pretraining_source.load()
        settings = [self.batch_size, self.init_std, self.pretraining_steps, LEARNING_RATE]
        depends_on = [str(self.network), str(self.loss), repr(examples), *settings]
        file = self.root / f"pretrained_{hashlib.sha256(repr(depends_on).encode()).hexdigest()[:16]}.safetensors"
        try:
            return load_file(file)["theta"]
        except (OSError, SafetensorError, KeyError):
            rank_zero_info(f"Pretraining on {examples.source}: {self.pretraining_steps} steps ...")
        data = ModuleTraining(
            self.network, self.loss, examples, self.batch_size, self.init_std, horizon=self.pretraining_steps
        )
        data.setup()
        theta = trained(data)
        self.root.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        save_file({"theta": theta}, part)
        os.replace(part, file)  # atomic, since another process may be about to read it
        return theta


def trained(data: ModuleTraining) -> Tensor:
    """Trains the network of the first training episode by Adam, and returns its θ, [P]."""
    episodes = data.training_runs("train", [0])
    theta = episodes.theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], LEARNING_RATE)
    with torch.inference_mode(False), torch.enable_grad():
        for step in range(data.horizon):
            theta.grad = episodes.value_and_grad(theta.detach(), step)[1]
            optimizer.step()
    return theta.detach()[0].clone()
