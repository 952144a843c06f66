"""Sheets of pictures that show θ during a run, for optimizees whose θ is a picture."""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.errors import require_positive
from lightning_l2l.evaluation.comparison import comparison_of
from lightning_l2l.evaluation.names import as_text
from lightning_l2l.learners.base import label_of, rule_of
from lightning_l2l.rules import UpdateRule
from lightning_l2l.tensorboard import has_tensorboard, show_figure
from lightning_l2l.unroll import runs

DPI = 100  # of a sheet, to size it in pixels
CELL = 128  # least number of pixels of a picture's longer side on a sheet
GAP = 4  # pixels between pictures
MARGIN = 22  # pixels for names, at the left and at the top


class Row(NamedTuple):
    """One line of a sheet: a name, and pictures [3, H, W] in 0..1 by their titles."""

    name: str
    pictures: dict[str, Tensor]


class Pictures(Callback):
    """Shows θ at some steps of the learned rule and of the best baseline, if θ is a picture.

    Each validation draws a sheet into TensorBoard; a test also writes it beside results.csv, as pictures.png, or as
    pictures_NAME.png for a variant. Other optimizees are ignored.

    Args:
        episodes: number of episodes that a test shows; a validation shows one.
        steps: the steps to show; the last one is always shown.
    """

    def __init__(self, episodes: int = 3, steps: tuple[int, ...] = (0, 16, 32, 64, 128)) -> None:
        require_positive("pictures.episodes", episodes)
        self.episodes = episodes
        self.steps = steps
        self.shown: list[Episodes] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the episodes of the last validation."""
        self.shown = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the episodes of an earlier race."""
        self.shown = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Episodes, *_: Any
    ) -> None:
        """Keeps the first episode."""
        self._keep(batch, 1)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Episodes, *_: Any
    ) -> None:
        """Keeps the first episodes."""
        self._keep(batch, self.episodes)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the sheet of one episode, now that the best baseline is known."""
        if has_tensorboard(trainer):
            self._draw(trainer, pl_module, "val/pictures")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the sheet and writes it."""
        folder = comparison_of(trainer).folder(trainer)
        name = re.sub(r"[^\w.-]+", "_", trainer.datamodule.variant_name)  # type: ignore[attr-defined]
        name = f"pictures{name and '_'}{name}"
        figure = self._draw(trainer, pl_module, f"test/{name}")
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=DPI)
            print(f"Written to {folder}: {name}.png")

    def _keep(self, batch: Episodes, count: int) -> None:
        missing = count - sum(map(len, self.shown))
        if missing > 0 and batch.pictures(batch.theta) is not None:
            self.shown.append(batch.first(missing))

    def _draw(self, trainer: Trainer, pl_module: LightningModule, tag: str) -> Figure | None:
        learned = rule_of(pl_module)
        if not self.shown or learned is None or not trainer.is_global_zero:
            return None
        rules: dict[str, UpdateRule] = {label_of(pl_module): learned}
        if best := comparison_of(trainer).best:
            rules[best.label] = best.to(self.shown[0].theta)
        horizon = trainer.datamodule.horizon  # type: ignore[attr-defined]
        steps = {step for step in self.steps if step < horizon} | {horizon}
        with trainer.precision_plugin.forward_context():
            lines = [
                [row for batch in self.shown for row in rows(name, rule, batch, steps)] for name, rule in rules.items()
            ]
        figure = sheet([row for of_episode in zip(*lines, strict=True) for row in of_episode])
        if has_tensorboard(trainer):
            show_figure(trainer, tag, figure)
        return figure


def rows(name: str, rule: UpdateRule, episodes: Episodes, steps: set[int]) -> list[Row]:
    """Runs a rule and returns a row for each episode: its reference pictures, and θ at the steps."""
    columns = episodes.references()
    for run in islice(runs(rule, episodes), max(steps) + 1):
        if run.step in steps:
            pictures = episodes.pictures(run.theta)
            assert pictures is not None
            columns[f"step {run.step}"] = pictures
    return [Row(name, {key: column[n].float().cpu() for key, column in columns.items()}) for n in range(len(episodes))]


def sheet(lines: Sequence[Row]) -> Figure:
    """Draws rows below each other, each pixel enlarged by a whole factor, with names at the left and above.

    Args:
        lines: rows with the same columns; the last picture of the first row sets the size of every cell.
    """
    height, width = list(lines[0].pictures.values())[-1].shape[1:]
    zoom = -(-CELL // max(height, width))
    height, width = zoom * height + GAP, zoom * width + GAP
    columns = len(lines[0].pictures)
    whole_width, whole_height = MARGIN + columns * width, MARGIN + len(lines) * height
    figure = Figure(figsize=(whole_width / DPI, whole_height / DPI), dpi=DPI)
    for r, (name, pictures) in enumerate(lines):
        bottom = whole_height - MARGIN - (r + 1) * height
        middle = (bottom + height / 2) / whole_height
        figure.text(MARGIN / 2 / whole_width, middle, as_text(name), rotation=90, ha="center", va="center", fontsize=9)
        for c, (title, picture) in enumerate(pictures.items()):
            place = (MARGIN + c * width, bottom, width - GAP, height - GAP)
            sides = (whole_width, whole_height, whole_width, whole_height)
            axes = figure.add_axes(tuple(p / s for p, s in zip(place, sides, strict=True)))  # type: ignore[arg-type]
            axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
            if r == 0:
                axes.set_title(title, fontsize=9, pad=4)
    return figure
