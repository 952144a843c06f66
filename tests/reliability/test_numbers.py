"""NaN and infinities in the middle of a fit: none reaches a checkpoint, and the terminal says so."""

import math
import random
import re
from functools import partial

from command_line import tiny

from reliability.injections import CALLS, PLACES, inject
from reliability.mutations import NOT_FINITE
from reliability.outcomes import not_finite

SAID = re.compile(r"not finite|NaN|infinit|skipped|diverge")


def test_numbers_that_are_none_reach_no_checkpoint_and_are_said(seed, forks, count, tmp_path):
    choices = random.Random(seed)
    place = list(PLACES)[seed % len(PLACES)]
    call, value = choices.randint(1, CALLS[PLACES[place][1]]), choices.choice(NOT_FINITE)
    if place == "gradients":
        value = math.nan  # on an infinite one the LSTM only saturates
    print(f"{value} in {place}, call {call}")
    ended = forks.run(tiny("fit", "--comparison.baselines=[]"), tmp_path, partial(inject, place, value, call))
    count(place)
    assert ended.fault == ""
    assert not_finite(tmp_path) == []
    assert SAID.search(ended.output), ended.output
