"""Tuning of the baselines' settings on separate episodes."""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, product

import torch
from torch import Tensor, nn

from lightning_l2l.episodes import Episodes
from lightning_l2l.rules import UpdateRule
from lightning_l2l.unroll import LAST, final_loss, learning_curves, runs

CACHED = 500_000  # coordinates that fit in a processor's cache; each takes twice the time when there are many more
RATE = "learning_rate"

Grid = dict[str, list[float]]
"""The choices: G values of each tuned setting; choice g takes the g-th value of each."""


def learning_rates(rates_per_decade: int) -> Tensor:
    """The grid on which learning rates are tuned: 1e-4 to 10, in equal ratios."""
    return torch.logspace(-4, 1, 5 * rates_per_decade + 1)


def grid_of(rule: UpdateRule, rates: Tensor) -> Grid:
    """All learning rates, each with all values of the settings tuned with it; empty for a rule without a rate.

    Args:
        rule: tuned if it has an attribute ``learning_rate``, which it must read anew at each step. Its attribute
            ``tuned_with`` may name others with their values, such as ``{"weight_decay": (0.0, 0.1)}``.
        rates: what to choose from, [R].
    """
    if not hasattr(rule, RATE):
        return {}
    choices = {RATE: rates.tolist(), **getattr(rule, "tuned_with", {})}
    return dict(zip(choices, map(list, zip(*product(*choices.values()), strict=True)), strict=True))


def size_of(grid: Grid) -> int:
    """G, how many choices a grid has."""
    return len(grid.get(RATE, ()))


def with_settings(rule: UpdateRule, settings: Mapping[str, float | Tensor]) -> UpdateRule:
    """Returns a copy of a rule with other values of some attributes.

    Args:
        rule: the original, which is not changed.
        settings: numbers, or tensors [N, 1] that give each of N episodes side by side a value of its own.
    """
    rule = copy.deepcopy(rule)
    for name, value in settings.items():
        before = getattr(rule, name)
        if isinstance(before, Tensor):
            value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.double)
            value = nn.Parameter(value) if isinstance(before, nn.Parameter) else value
        setattr(rule, name, value)
        if isinstance(value, Tensor) and value.ndim:
            rule.coordinatewise = False  # type: ignore[misc]  # slices would mix episodes, which differ now
    return rule


def tune(
    rule: UpdateRule,
    batches: Sequence[Episodes],
    steps: int,
    grid: Grid,
    prune: bool = False,
    progress: Callable[[int], object] = lambda tried: None,
    last: int = LAST,
) -> dict[str, float]:
    """Finds the settings with the lowest mean final loss over all episodes (arXiv:1606.04474, section 3).

    Args:
        rule: the baseline.
        batches: episodes to tune on; the number of parameters is the same within a batch, and may differ between
            batches.
        steps: the horizon.
        grid: what to choose from, as ``grid_of`` returns it.
        prune: drop the worse half of the choices after an eighth, a quarter and half of the steps (successive halving),
            which takes a third of the time but may miss a rate that is slow at first and best in the end. Where the
            last step alone counts, all are run to the end.
        progress: called with the number of choices newly tried or dropped, each counted once per batch.
        last: steps at the end of a run whose mean loss is its final loss.

    Returns:
        The best choice, by the names of the settings.
    """
    total = sum(map(len, batches))
    shares = [len(episodes) / total for episodes in batches]
    find = _best_by_halving if prune and last > 1 else _best_of_all  # earlier losses say nothing of a last one alone
    best = find(rule, batches, shares, steps, grid, progress, last)
    return {name: values[best] for name, values in grid.items()}


def _best_by_halving(
    rule: UpdateRule,
    batches: Sequence[Episodes],
    shares: list[float],
    steps: int,
    grid: Grid,
    progress: Callable[[int], object],
    last: int,
) -> int:
    choices = [dict(zip(grid, values, strict=True)) for values in zip(*grid.values(), strict=True)]
    running = {
        number: [runs(with_settings(rule, choice), episodes) for episodes in batches]
        for number, choice in enumerate(choices)
    }
    curves = {number: [[next(run).loss] for run in each] for number, each in running.items()}
    for rung in (steps // 8, steps // 4, steps // 2, steps):
        if rung < min(last, steps):
            continue
        finals = {}
        for number, of_batches in curves.items():
            for run, curve in zip(running[number], of_batches, strict=True):
                curve += [run.loss for run in islice(run, rung + 1 - len(curve))]
            means = [final_loss(torch.stack(curve, 1), last).mean().item() for curve in of_batches]
            finals[number] = sum(share * mean for share, mean in zip(shares, means, strict=True))
        best = sorted(finals, key=finals.__getitem__)
        curves = {number: curves[number] for number in best[: -(-len(best) // 2)]}
        progress((len(best) - len(curves)) * len(batches))
        running = {number: running[number] for number in curves}
    return best[0]


def _best_of_all(
    rule: UpdateRule,
    batches: Sequence[Episodes],
    shares: list[float],
    steps: int,
    grid: Grid,
    progress: Callable[[int], object],
    last: int,
) -> int:
    """Runs all choices to the end, as many side by side as the cache can hold."""
    means = torch.zeros(size_of(grid))
    for share, episodes in zip(shares, batches, strict=True):
        at_once = max(1, CACHED // episodes.theta.numel()) if episodes.theta.device.type == "cpu" else size_of(grid)
        losses = []
        for numbers in torch.arange(size_of(grid)).split(at_once):
            settings = {name: _per_episode(values, numbers, episodes) for name, values in grid.items()}
            curves = learning_curves(with_settings(rule, settings), episodes.repeat(len(numbers)), steps)
            losses.append(final_loss(curves, last).view(len(numbers), len(episodes)).mean(1).cpu())
            progress(len(numbers))
        means = means + share * torch.cat(losses)
    return int(means.argmin())


def _per_episode(values: list[float], numbers: Tensor, episodes: Episodes) -> Tensor:
    """The chosen values, each repeated for E episodes, [R · E, 1]."""
    chosen = torch.tensor(values, dtype=torch.double)[numbers].to(episodes.theta)
    return chosen.repeat_interleave(len(episodes))[:, None]
