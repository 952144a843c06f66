"""Compares estimators of the meta-gradient at equal CPU time; hours of one core, which should have nothing else to do.

    python tests/benchmarks/bench_estimators.py --seconds 300

Each estimator meta-trains ``AdamController`` from its untrained start, on the same mixture of everyday tasks, with runs
of 50 to 2,000 steps. Its meta-learning rate, and for evolution strategies σ, are chosen on one seed and on families of
their own, from as many values for each. Then it trains on further seeds, and the rules are tested on other families
that nothing else has seen. Finished runs are in a CSV file, so that a comparison that was killed goes on; several
processes may fill one, each with other ``--estimators``.
"""

import csv
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import auto_cli
from torch import Tensor

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.markdown_table import markdown_table
from lightning_l2l.learners.stages import Stage, Stages
from lightning_l2l.meta_gradients import ES, NRES, PES, Exact, FirstOrder, Linearized, MetaGradient, Staggered
from lightning_l2l.meta_losses import LogLoss
from lightning_l2l.optimizees import Part, Suite
from lightning_l2l.optimizees.families import (
    Autoencoders,
    CharRNNs,
    Completions,
    ImageMLPs,
    ResidualMLPs,
    Tables,
    Teachers,
)
from lightning_l2l.rules import AdamController, UpdateRule
from lightning_l2l.unroll import learning_curves

EPISODES, SHORTEST, CLIP, META_LOSS = 32, 50, 1.0, LogLoss()
TUNING_SEED, UNTRAINED = 0, 0
FAMILIES = {
    "training": {
        "image_mlps": Part(ImageMLPs(), 0.35),
        "autoencoders": Part(Autoencoders(), 0.25),
        "teachers": Part(Teachers(), 0.25),
        "tables": Part(Tables(), 0.15),
    },
    "tuning": {"residual_mlps": Part(ResidualMLPs()), "linear_teachers": Part(Teachers(linear=True))},
    "held out": {
        "batch_normalised_mlps": Part(ResidualMLPs(norm="batch")),
        "completions": Part(Completions()),
        "grus": Part(CharRNNs()),
    },
}


class Method(NamedTuple):
    """An estimator."""

    make: Callable[..., MetaGradient]
    unroll: int | None  # K; None stands for whole runs
    has_sigma: bool = False


METHODS = {
    "first order": Method(FirstOrder, 50),
    "exact (K = 20)": Method(partial(Exact, episode_clip=1.0), 20),
    "exact (K = 50)": Method(partial(Exact, episode_clip=1.0), 50),
    "linearized": Method(Linearized, 50),
    "truncated ES": Method(ES, 50, True),
    "ES (whole runs)": Method(ES, None, True),
    "PES": Method(PES, 50, True),
    "NRES": Method(NRES, 50, True),
}


class Settings(NamedTuple):
    """What a run of meta-training depends on, beside the code."""

    estimator: str
    rate: float  # of Adam on φ
    sigma: float  # 0 for estimators without
    seed: int
    seconds: float  # of the CPU
    horizon: int  # of the longest runs


class Row(NamedTuple):
    """What is measured, as a row of the CSV file."""

    settings: Settings
    tasks: str  # on which families
    meta_steps: int
    quarter: float  # mean log loss of the first quarter of the longest runs, less that of the untrained rule
    whole: float  # the same of whole runs
    cosine: float  # of two independent meta-gradients at the start, each of a tenth of the seconds


def suite(role: str, horizon: int, seed: int = 0) -> Suite:
    """The tasks of one role, ready to be drawn from."""
    data = Suite(FAMILIES[role], horizon, EPISODES, EPISODES * 10**6, seed=seed, random_scaling=1.0)
    for task in data.tasks:
        data.unit(task)  # which reads the examples
    return data


def meta_gradients(rule: UpdateRule, settings: Settings, seconds: float) -> Iterator[None]:
    """Puts one meta-gradient after the other, clipped, into the parameters' ``grad``, until CPU time is over."""
    method = METHODS[settings.estimator]
    estimator = method.make(sigma=settings.sigma) if method.has_sigma else method.make()
    if method.unroll:
        estimator = Staggered(estimator)
    data = suite("training", settings.horizon, settings.seed)
    stages = Stages([Stage(horizon=(SHORTEST, settings.horizon))], method.unroll or settings.horizon, META_LOSS)
    torch.manual_seed(settings.seed)
    end = time.process_time() + seconds
    for meta_batch, episodes in enumerate(data.train_dataloader()):
        plan = stages.plan(0, data, meta_batch)
        for truncation in estimator.truncations(rule, episodes, plan):
            rule.zero_grad()
            truncation.objective.backward()
            del truncation
            norm = torch.nn.utils.clip_grad_norm_(rule.parameters(), CLIP)
            if time.process_time() > end:
                return
            if norm.isfinite():
                yield


def untrained() -> AdamController:
    """The rule that all meta-training starts from."""
    torch.manual_seed(UNTRAINED)
    return AdamController()


def meta_train(settings: Settings) -> tuple[UpdateRule, int]:
    """Returns a trained rule, and how many meta-steps there was time for."""
    rule, steps = untrained(), 0
    adam = torch.optim.Adam(rule.parameters(), lr=settings.rate)
    for _ in meta_gradients(rule, settings, settings.seconds):
        adam.step()
        steps += 1
    return rule, steps


def split_half_cosine(settings: Settings) -> float:
    """The cosine of two means of meta-gradients at the start, from different episodes and noise; NaN without any."""
    halves = []
    for seed in (settings.seed, settings.seed + 1000):
        rule, total = untrained(), torch.zeros(())
        for _ in meta_gradients(rule, settings._replace(seed=seed), settings.seconds / 10):
            total = total + torch.cat([phi.grad.flatten() for phi in rule.parameters()])  # type: ignore[union-attr]
        halves.append(total)
    if not all(half.any() for half in halves):
        return float("nan")
    return torch.cosine_similarity(*halves, dim=0).item()


def log_losses(rule: UpdateRule, tasks: str, horizon: int) -> Tensor:
    """Mean log losses of the first quarter of runs and of whole runs, on every second task, [2, episodes]."""
    values = []
    for episodes in suite(tasks, horizon).tuning_batches()[::2]:
        losses = learning_curves(rule, episodes, horizon)[:, 1:].T
        values.append(torch.stack([META_LOSS(losses[:steps], 0, steps) for steps in (horizon // 4, horizon)]))
    return torch.cat(values, 1)


@cache
def untrained_log_losses(tasks: str, horizon: int) -> Tensor:
    """Those of the untrained rule."""
    return log_losses(untrained(), tasks, horizon)


class Rows:
    """The rows of a CSV file, to which finished ones are added at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[Settings, str], Row] = {}
        if path.is_file():
            with path.open(newline="") as file:
                for estimator, *numbers, tasks, steps, quarter, whole, cosine in list(csv.reader(file))[1:]:
                    rate, sigma, seed, seconds, horizon = map(float, numbers)
                    settings = Settings(estimator, rate, sigma, int(seed), seconds, int(horizon))
                    row = Row(settings, tasks, int(steps), float(quarter), float(whole), float(cosine))
                    self.rows[settings, tasks] = row

    def row(self, settings: Settings, tasks: str) -> Row:
        """The row of these settings, measured unless it is in the file."""
        if (settings, tasks) not in self.rows:
            rule, steps = meta_train(settings)
            gains = log_losses(rule, tasks, settings.horizon) - untrained_log_losses(tasks, settings.horizon)
            cosine = split_half_cosine(settings) if tasks == "held out" else float("nan")
            self._add(Row(settings, tasks, steps, *gains.mean(1).tolist(), cosine))
        return self.rows[settings, tasks]

    def _add(self, row: Row) -> None:
        print(row, flush=True)
        self.rows[row.settings, row.tasks] = row
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow([*Settings._fields, *Row._fields[1:]])
            writer.writerow([*row.settings, *row[1:]])


def best_settings(rows: Rows, candidates: list[Settings]) -> Settings:
    """Those with the lowest mean of both log losses on the tuning families; no run is needed to choose from one."""
    if len(candidates) == 1:
        return candidates[0]
    tried = [rows.row(settings, "tuning") for settings in candidates]
    return min(tried, key=lambda row: row.quarter + row.whole).settings


def table(results: list[list[Row]], horizon: int) -> str:
    """Markdown with a line for each estimator, from its rows of all seeds."""
    titles = ["estimator", "meta-learning rate", "σ", "meta-steps"]
    titles += [f"{horizon // 4:,} steps", f"{horizon:,} steps", "split-half cosine"]
    lines = []
    for rows in results:
        chosen, columns = rows[0].settings, list(zip(*rows, strict=True))[2:]
        steps, *losses, cosines = (torch.tensor(column, dtype=torch.double) for column in columns)
        cells = [f"{loss.mean():.3f} ({loss.min():.3f} to {loss.max():.3f})" for loss in losses]
        sigma = f"{chosen.sigma:g}" if chosen.sigma else ""
        cells = [chosen.estimator, f"{chosen.rate:g}", sigma, f"{steps.mean():,.0f}", *cells]
        cells.append(f"{cosines.nanmean():.2f}")  # not of seeds without time for a meta-step
        lines.append(cells)
    return markdown_table(titles, lines, left=1) + "\n"


def compare(
    seconds: float = 300,
    seeds: int = 3,
    horizon: int = 2000,
    rates: tuple[float, ...] = (0.001, 0.004, 0.016),
    sigmas: tuple[float, ...] = (0.01, 0.03, 0.1),
    estimators: list[str] | None = None,
    results: Path = Path("estimators.csv"),
    markdown: Path = Path("estimators.md"),
) -> None:
    """Compares estimators of the meta-gradient at equal CPU time.

    Log losses are means over runs, less those of the untrained rule on the same episodes; lower is better. A table has
    the mean over seeds, and the lowest and the highest.

    Args:
        seconds: CPU seconds of each run of meta-training.
        seeds: runs at the chosen settings.
        horizon: steps of the longest runs; rules are tested on as many, and on a quarter.
        rates: meta-learning rates to choose from.
        sigmas: σ to choose from.
        estimators: some of the names in the table; null takes all.
        results: file of finished runs.
        markdown: file of the table.
    """
    torch.set_num_threads(1)
    if unknown := set(estimators or ()) - METHODS.keys():
        raise InvalidInputError(f"estimators has {', '.join(unknown)}: give some of {', '.join(METHODS)}.")
    rows, finished = Rows(results), []
    for name in estimators or METHODS:
        pairs = product(rates, sigmas if METHODS[name].has_sigma else (0.0,))
        candidates = [Settings(name, *pair, TUNING_SEED, seconds, horizon) for pair in pairs]
        best = best_settings(rows, candidates)
        finished.append([rows.row(best._replace(seed=seed), "held out") for seed in range(1, seeds + 1)])
        markdown.write_text(table(finished, horizon))
    print(table(finished, horizon))


if __name__ == "__main__":
    auto_cli(compare, as_positional=False)
