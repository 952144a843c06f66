"""Update rules: what turns a gradient into a step, learned or designed by hand, behind one interface."""

from lightning_l2l.rules.base import Layout, State, UpdateRule
from lightning_l2l.rules.fastest import fastest
from lightning_l2l.rules.grouped import Grouped
from lightning_l2l.rules.hand_designed import NAG, SGD, Adam, HandDesignedRule, RMSprop
from lightning_l2l.rules.lstm import CoordinatewiseLSTM
from lightning_l2l.rules.tape import Tape

__all__ = [
    "NAG",
    "SGD",
    "Adam",
    "CoordinatewiseLSTM",
    "Grouped",
    "HandDesignedRule",
    "Layout",
    "RMSprop",
    "State",
    "Tape",
    "UpdateRule",
    "fastest",
]
