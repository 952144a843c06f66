"""Who races against the learned rule: baselines, which are tuned first, and rivals, which have been trained."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.provenance import settings_of, source_of
from lightning_l2l.evaluation.tuning import grid_of, with_settings
from lightning_l2l.learners.base import rule_of
from lightning_l2l.optimizees import EpisodeDataModule
from lightning_l2l.optimizees.origin import KEPT, is_kept
from lightning_l2l.rules import NAG, SGD, Adam, RMSprop, UpdateRule
from lightning_l2l.rules.files import PRETRAINED, check_finite, check_fit, make_rule, read_rule, read_safely
from lightning_l2l.tensorboard import run_folder

Kind = Literal["learned", "rival", "baseline"]


def papers_baselines() -> list[UpdateRule]:
    """Those of arXiv:1606.04474, section 3."""
    return [SGD(), NAG(), RMSprop(), Adam()]


@dataclass
class Contestant:
    """A rule that races against the learned one.

    Attributes:
        name: what tables and figures call it.
        kind: baseline or rival.
        rule: the rule as given; only copies of it are run.
        run: the run that a rival comes from, such as "seed 1", which its name ends with.
        data: the settings of the data that a rival was trained on, as far as they are known.
        trained_on: what its checkpoint has kept of that data (see ``Origin.kept``).
        tuned: the settings that have been tuned, by name.
    """

    name: str
    kind: Kind
    rule: UpdateRule
    run: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    trained_on: dict[str, Any] | None = None
    tuned: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = settings_of(self.rule)  # now, before the rule is bound to anything
        self.grid_names = list(grid_of(self.rule, Tensor([1.0]))) if self.kind == "baseline" else []
        for name in self.grid_names:
            if not hasattr(self.rule, name):
                raise InvalidInputError(
                    f"comparison.baselines has {self.name}, whose tuned_with names {name}, which it lacks: give "
                    "the rule an attribute of that name."
                )

    @property
    def tunable(self) -> bool:
        """Whether it has a learning rate to tune."""
        return bool(self.grid_names)

    def over(self, horizon: int) -> UpdateRule:
        """A copy of the rule for runs of ``horizon`` steps; fills in its ``horizon`` if that is None."""
        wants_horizon = getattr(self.rule, "horizon", horizon) is None
        return with_settings(self.rule, {"horizon": horizon} if wants_horizon else {})

    def tuned_over(self, horizon: int) -> UpdateRule:
        """As ``over``, with its tuned settings."""
        return with_settings(self.over(horizon), self.tuned)

    def check(self, datamodule: EpisodeDataModule) -> None:
        """Refuses data that the rule does not fit, or whose test has images that a rival may have been trained on.

        Raises:
            InvalidInputError: says why.
        """
        self.over(datamodule.horizon).bind(datamodule.episodes("val", [0]).layout)
        source, parts = getattr(datamodule, "source", None), getattr(datamodule, "parts", None)
        before = self.data.get("parts")
        if source is not None and source == self.data.get("source") and list(parts or ()) != list(before or ()):
            raise InvalidInputError(
                f"data.parts is {parts}, but it was trained with {before}, and may have met the images of this test: "
                "give the same."
            )
        if self.trained_on is not None:
            datamodule.origin.refuse_seen(self.trained_on)

    def depends_on(self, batches: Sequence[Episodes]) -> tuple[object, ...] | None:
        """The rule's settings, and a digest of its source code and the episodes'; None if there is no source file."""
        every = [episodes for batch in batches for episodes in _with_inner(batch)]
        fields = [value for episodes in every for value in episodes.shared_fields().values()]
        source = source_of(self.rule, *every, *fields)
        return (source, self.settings) if source else None


def contestants(
    learner: LightningModule, baselines: Sequence[UpdateRule] | None, rivals: Sequence[str], home: Path | None
) -> list[Contestant]:
    """Makes all contestants of the learned rule, rivals first.

    Args:
        learner: the one whose rule is tested.
        baselines: null is the paper's four.
        rivals: trained rules, as ``read_rival`` takes them.
        home: the folder of the learner's experiment; names of rivals from there leave it out.

    Raises:
        InvalidInputError: a rival cannot be read.
    """
    found = [read_rival(name, learner, home) for name in rivals]
    for rule in papers_baselines() if baselines is None else baselines:
        found.append(Contestant(rule.label, "baseline", rule))
    return found


def _with_inner(episodes: Episodes) -> list[Episodes]:
    """Episodes, and those that they hold in a field, such as the ones that ``ScaledEpisodes`` rescales."""
    inner = [value for value in vars(episodes).values() if isinstance(value, Episodes)]
    return [episodes, *(one for each in inner for one in _with_inner(each))]


def told_apart(names: Sequence[str]) -> list[str]:
    """The same names, with repeated ones numbered: NAG, NAG 2."""
    found: list[str] = []
    for name in names:
        free = (f"{name} {number}" if number > 1 else name for number in count(1))
        found.append(next(candidate for candidate in free if candidate not in found))
    return found


def read_rival(name: str, learner: LightningModule, home: Path | None) -> Contestant:
    """Reads a trained rule, without executing anything in its file.

    Args:
        name: ``pretrained:NAME``, ``pretrained:PATH`` of an exported rule, or the path of a checkpoint that fit wrote.
        learner: a rival with the same settings as the learner's rule is of that rule's class; any other rival must be
            of one of the package's own classes.
        home: see ``contestants``.

    Raises:
        InvalidInputError: says what is wrong with it.
    """
    checkpoint: dict[str, Any] = {}
    try:
        if name.startswith(PRETRAINED):
            path = Path(name.removeprefix(PRETRAINED))
            settings, tensors = read_rule(str(path))
        else:
            path = Path(name).resolve()
            settings, tensors, checkpoint = _read_checkpoint(path)
        own = rule_of(learner)
        same = own is not None and settings == learner.hparams.get("rule")
        rule = copy.deepcopy(own) if own is not None and same else make_rule(settings, tensors, name)
        check_fit(rule, tensors, name)
        rule.load_state_dict(tensors)
    except InvalidInputError as error:
        raise InvalidInputError(f"comparison.rivals has {name}: {' '.join(str(error).split())}") from None
    if name.startswith(PRETRAINED):
        return Contestant(path.stem, "rival", rule)
    folder = run_folder(path)
    label = rule.label
    if home is not None and folder is not None and folder.parent != home.resolve():
        label = f"{label} {folder.parent.name}"
    run = run_of(path) or path.stem
    data = checkpoint.get("datamodule_hyper_parameters", {}).get("data", {}).get("init_args", {})
    return Contestant(f"{label} {run}", "rival", rule, run, data, checkpoint.get(KEPT))


def run_of(checkpoint: Path) -> str:
    """The name of a checkpoint's run, such as "seed 1" for runs/mnist/seed_1; empty if it belongs to none."""
    folder = run_folder(checkpoint)
    return "" if folder is None else folder.name.replace("_", " ")


def _read_checkpoint(path: Path) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """The settings and the numbers of a checkpoint's rule, and all that the checkpoint holds."""
    if not path.is_file():
        raise InvalidInputError(f"there is no such file: give a checkpoint's path, or {PRETRAINED}NAME.")
    checkpoint = read_safely(path)
    try:
        settings = checkpoint["hyper_parameters"]["rule"]
        weights = checkpoint["state_dict"].items()
        tensors = {key.removeprefix("rule."): value for key, value in weights if key.startswith("rule.")}
        check_finite(tensors, "it is a checkpoint")
        if not is_kept(checkpoint.get(KEPT)):
            checkpoint.pop(KEPT, None)
        return settings, tensors, checkpoint
    except (TypeError, KeyError, AttributeError):
        raise InvalidInputError("it is truncated or not a checkpoint that fit wrote: give another.") from None
