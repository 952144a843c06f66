"""Learning rates of the baselines, tuned on episodes set apart for that."""

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.rules import NAG, SGD, Adam, HandDesignedRule, RMSprop
from lightning_l2l.unroll import LAST, final_loss, learning_curves, runs

BASELINES: tuple[type[HandDesignedRule], ...] = (SGD, NAG, RMSprop, Adam)
CACHED = 500_000  # coordinates that a processor works on at full speed; it takes twice the time for many more


def learning_rates(rates_per_decade: int) -> Tensor:
    """The grid on which learning rates are tuned: 1e-4 to 10, in equal ratios."""
    return torch.logspace(-4, 1, 5 * rates_per_decade + 1)


def tune(
    baseline: type[HandDesignedRule],
    episodes: Episodes,
    steps: int,
    rates: Tensor,
    prune: bool = False,
    progress: Callable[[int], object] = lambda tried: None,
) -> float:
    """Finds the learning rate with the best mean final loss (arXiv:1606.04474, section 3).

    Args:
        baseline: class of the rule.
        episodes: E episodes to tune on.
        steps: the horizon.
        rates: what to choose from, [R].
        prune: give up the worse half of the rates after an eighth, a quarter and half of the steps (successive
            halving), for a third of the time; a rate that is slow at first but best in the end may then be missed.
        progress: is told how many more rates have been tried or given up.
    """
    find = _tune_by_halving if prune else _tune_on_all
    return find(baseline, episodes, steps, rates, progress)


def _tune_by_halving(
    baseline: type[HandDesignedRule],
    episodes: Episodes,
    steps: int,
    rates: Tensor,
    progress: Callable[[int], object],
) -> float:
    running = {rate: runs(baseline(rate), episodes) for rate in rates.tolist()}
    curves = {rate: [next(run).loss] for rate, run in running.items()}
    for rung in (steps // 8, steps // 4, steps // 2, steps):
        if rung < min(LAST, steps):
            continue
        for rate, curve in curves.items():
            curve += [run.loss for run in islice(running[rate], rung + 1 - len(curve))]
        finals = {rate: final_loss(torch.stack(curve, 1)).mean().item() for rate, curve in curves.items()}
        best = sorted(finals, key=finals.__getitem__)
        curves = {rate: curves[rate] for rate in best[: -(-len(best) // 2)]}
        progress(len(best) - len(curves))
        running = {rate: running[rate] for rate in curves}
    return best[0]


def _tune_on_all(
    baseline: type[HandDesignedRule],
    episodes: Episodes,
    steps: int,
    rates: Tensor,
    progress: Callable[[int], object],
) -> float:
    """Runs all rates to the end, as many in a batch as the cache can hold."""
    at_once = max(1, CACHED // episodes.theta.numel()) if episodes.theta.device.type == "cpu" else len(rates)
    losses = []
    for batch in rates.split(at_once):
        each = batch.to(episodes.theta).repeat_interleave(len(episodes))[:, None]  # [R · E, 1]
        curves = learning_curves(baseline(each), episodes.repeat(len(batch)), steps)
        losses.append(final_loss(curves).view(len(batch), len(episodes)).mean(1).cpu())
        progress(len(batch))
    return rates[torch.cat(losses).argmin()].item()
