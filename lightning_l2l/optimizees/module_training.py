"""Training any network on any examples with any loss, as an optimizee."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from lightning_l2l.errors import InvalidInputError, require_positive
from lightning_l2l.optimizees.base import EpisodeDataModule, Split
from lightning_l2l.optimizees.module_episodes import Batching, ModuleEpisodes, convolves
from lightning_l2l.optimizees.module_trial import (
    fastest_batching,
    rows_to_try,
    takes_channels_last,
    try_loss,
    try_network,
    uses_fused_kernels,
)
from lightning_l2l.optimizees.origin import Origin
from lightning_l2l.optimizees.sources.base import Examples, Source
from lightning_l2l.optimizees.sources.tensors import load_arrays

# the part whose examples are held out from the runs of a split; runs of other splits have no accuracy
HELD_OUT_PART: dict[Split, Split] = {"val": "train", "test": "val"}
MOST_HELD_OUT = 1000  # examples of each run
CLASSIFIERS = (nn.CrossEntropyLoss, nn.NLLLoss)  # losses of classes; a subclass may read its arguments otherwise


class ModuleTraining(EpisodeDataModule):
    """Each episode trains a network on its own minibatches, from its own initial parameters.

    Meta-training, validation and test episodes draw their minibatches from disjoint examples; the learning rates of the
    baselines are tuned on the validation examples.

    Where the loss is cross-entropy of classes, test and validation runs end with an accuracy, each on up to 1,000
    examples of its own. Long runs meet every example of their part, so these are drawn from another part: for a test
    run from the validation examples, on which no network of the test trains and no meta-gradient is taken, and for a
    validation run from those of meta-training.

    Args:
        network: the module to train, which takes the inputs of a minibatch, [B, ...].
        loss: takes what the network returns and the targets of the minibatch, and returns one number, such as
            torch.nn.MSELoss.
        source: path of an .npz with x_train, y_train, x_test and y_test (without y_train and y_test the inputs are the
            targets), or a class path: lightning_l2l.optimizees.Table, lightning_l2l.optimizees.Text or a source of your
            own.
        batch_size: B, examples in a minibatch.
        init_std: standard deviation of θ_0 ~ N(0, init_std²), weights and biases alike; null initialises each module of
            the network by its ``reset_parameters``.
        reconstruct: whether the inputs are the targets, as for an autoencoder, whatever targets the source has.
        kwargs: see ``EpisodeDataModule``.
    """

    episodes_class: ClassVar[type[ModuleEpisodes]] = ModuleEpisodes

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        source: Source | str,
        batch_size: int = 128,
        init_std: float | None = None,
        reconstruct: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive("data.batch_size", batch_size)
        if init_std is not None and not 0 <= init_std < np.inf:
            raise InvalidInputError(f"data.init_std is {init_std}: give null, or a finite number that is 0 or more.")
        self.network = network
        torch.func.replace_all_batch_norm_modules_(self.network)  # then uses the minibatch's own statistics
        self.loss = loss
        self.source = source
        self.batch_size = batch_size
        self.init_std = init_std
        self.reconstruct = reconstruct
        self.examples: Examples | None = None
        self.batching: Batching = "losses"
        self.fused = False
        self.channels_last = False
        self._fresh: nn.Module | None = None  # a copy whose parameters are drawn again for each θ_0
        self._parts: dict[Split, tuple[Examples, np.ndarray]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Loads the examples, tries the network on them, and, in a Trainer's run, logs which examples they are."""
        if self.examples is not None:
            return
        examples = self._load()
        self._check(examples)
        if self.trainer is not None:  # not for each task of a suite
            rank_zero_info(f"{examples.items.capitalize()}: {examples.source}, {len(examples):,} in all.")
        self.examples = examples

    def _load(self) -> Examples:
        if isinstance(self.source, Source):
            return self.source.load()
        if not self.source.endswith(".npz"):
            raise InvalidInputError(
                f"data.source is {self.source}, which is no .npz file: give the path of one, or the class path of a "
                "source such as lightning_l2l.optimizees.Table."
            )
        return load_arrays(Path(self.source))

    def _check(self, examples: Examples) -> None:
        """Refuses a network, loss and examples that do not fit together, and finds the fastest batching."""
        inputs, outputs = try_network(self.network, examples, self.batch_size)
        self._check_outputs(outputs, inputs, examples)
        seen = self._as_seen(examples, "train")
        trial = self._episodes("tune", (0, 1), seen, rows_to_try(seen, self.batch_size))
        self.fused = trial.fused = uses_fused_kernels(trial)
        try_loss(trial)
        self.batching = fastest_batching(trial)
        self.channels_last = inputs.ndim == 4 and convolves(self.network) and takes_channels_last(self.network, inputs)

    def _check_outputs(self, outputs: Any, inputs: Tensor, examples: Examples) -> None:
        """Refuses wrong outputs that the loss would accept; for subclasses that know more about them."""

    def _as_seen(self, examples: Examples, split: Split) -> Examples:
        """The examples as a split sees them."""
        return examples

    @property
    def description(self) -> str:
        """Which examples these are."""
        given = self.source if isinstance(self.source, str) else type(self.source).__name__
        source = self.examples.source if self.examples is not None else given
        return source + (", reconstructed" if self.reconstruct else "")

    @property
    def origin(self) -> Origin:
        """The examples."""
        return Origin(self.description) if self.examples is None else Origin(self.examples.source, [self.examples])

    def episodes(self, split: Split, numbers: Sequence[int]) -> ModuleEpisodes:
        """Builds the training runs with these numbers."""
        if self.examples is None:
            self.prepare_data()
            self.setup()
        episodes = self._episodes(split, numbers, *self._part(split))
        return replace(episodes, held_out=self._held_out(split, numbers))

    def training_runs(self, split: Split, numbers: Sequence[int]) -> ModuleEpisodes:
        """Builds runs that start as this split's episodes do, but train on the examples for training.

        For a comparison by held-out loss, as of a user's own network: the other parts stay unseen.
        """
        if self.examples is None:
            self.prepare_data()
            self.setup()
        return self._episodes(split, numbers, *self._part("train"))

    def _episodes(self, split: Split, numbers: Sequence[int], examples: Examples, rows: np.ndarray) -> ModuleEpisodes:
        thetas, indices = [], []
        for number in numbers:
            random = self.random(split, number)
            thetas.append(self._start(random))
            indices.append(rows[random.integers(0, len(rows), (self.horizon + 1, self.batch_size))])
        return self.episodes_class(
            torch.stack(thetas),
            torch.from_numpy(np.stack(indices)),
            examples,
            self.network,
            self.loss,
            self.reconstruct,
            self.batching,
            self.fused,
            self.channels_last,
        )

    def _held_out(self, split: Split, numbers: Sequence[int]) -> Tensor | None:
        """Draws the examples on which each run's accuracy is measured, [N, H]; None for runs that have none."""
        if split not in HELD_OUT_PART or type(self.loss) not in CLASSIFIERS or self.reconstruct:
            return None
        examples = self._part(split)[0]
        rows = examples.part(HELD_OUT_PART[split])
        if len(rows) < 2 or examples.minibatch(torch.from_numpy(rows[:1]), torch.float32)[1].is_floating_point():
            return None
        count = min(len(rows), MOST_HELD_OUT)
        # minibatches are drawn from the episode's stream itself, a random scaling from its first child, and companions'
        # minibatches from the second as well, which does no harm
        randoms = [self.random(split, number).spawn(2)[1] for number in numbers]
        return torch.from_numpy(np.stack([random.choice(rows, count, replace=False) for random in randoms]))

    def _part(self, split: Split) -> tuple[Examples, np.ndarray]:
        """The examples as a split sees them, and the numbers of those it draws from."""
        assert self.examples is not None
        if split not in self._parts:
            examples = self._as_seen(self.examples, split)
            self._parts[split] = examples, examples.part("val" if split == "tune" else split)
            if not len(self._parts[split][1]):
                raise self._nothing_left(split)
        return self._parts[split]

    def _nothing_left(self, split: Split) -> InvalidInputError:
        return InvalidInputError(f"data.source has no examples for {split}: give more of them.")

    def _start(self, random: np.random.Generator) -> Tensor:
        """Draws θ_0, [P]."""
        if self.init_std is not None:
            size = sum(parameter.numel() for parameter in self.network.parameters())
            return torch.from_numpy(self.init_std * random.standard_normal(size, dtype=np.float32))
        if self._fresh is None:
            self._fresh = deepcopy(self.network).cpu()  # the same θ_0 everywhere: other devices draw other numbers
        network = self._fresh
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(random.integers(2**63)))  # not those of other devices
            # children first: a parent's reset_parameters may re-initialise them
            for name, module in reversed(list(network.named_modules())):
                reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
                if reset is not None:  # the second is what MultiheadAttention and Transformer call it
                    reset()
                elif list(module.parameters(recurse=False)):
                    raise InvalidInputError(
                        f"data.init_std is null, but {name or 'the network'} of data.network has no reset_parameters() "
                        "to start its parameters afresh: give it one, or a standard deviation."
                    )
        return parameters_to_vector(network.parameters()).detach()
