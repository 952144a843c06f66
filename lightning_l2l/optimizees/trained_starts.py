"""Runs that begin with trained parameters, as fine-tuning does."""

import math

import numpy as np
from torch import Tensor

from lightning_l2l.episodes import Episodes
from lightning_l2l.rules import Adam
from lightning_l2l.unroll import optimize

RATE = 0.003  # of Adam
FEWEST, MOST = 20, 1500  # steps of Adam, drawn log-uniformly


def draw_steps(share: float, horizon: int, random: np.random.Generator) -> int:
    """How many steps of Adam come before the runs of a meta-batch; 0 in all but the given share of them."""
    drawn = FEWEST * math.exp(random.random() * math.log(MOST / FEWEST))
    return min(round(drawn), horizon) if random.random() < share else 0


def trained(episodes: Episodes, steps: int) -> Tensor:
    """Where Adam ends on these episodes, [N, P]."""
    return optimize(Adam(RATE), episodes, steps)[0]
