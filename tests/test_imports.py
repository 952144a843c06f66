"""Imports run one way: rules, unroll and meta_gradients need torch and nothing of Lightning."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["rules", "rules.fast.stepper", "unroll", "meta_gradients"])
def test_the_core_needs_torch_only(module):
    program = (
        f"import sys, lightning_l2l.{module}\n"
        "loaded = {name.split('.')[0] for name in sys.modules} & "
        "{'pytorch_lightning', 'torchvision', 'jsonargparse', 'matplotlib', 'rich', 'learn2learn'}\n"
        "later = {'lightning_l2l.' + name for name in ('optimizees', 'learners', 'evaluation', 'cli')}\n"
        "later &= sys.modules.keys()\n"
        "sys.exit(', '.join(loaded | later) or None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
