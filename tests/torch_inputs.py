"""What PyTorch's own tests give to optimizers, from torch's wheel."""

import sys
import types
import unittest
from functools import cache

import torch


@cache
def adam_inputs():
    """What they give to Adam: an ``OptimizerInfo``, with functions for settings, errors and schedulers.

    Importing it needs a package that nothing here uses, forbids to set torch's flags and wraps TorchScript's calls;
    that is undone.
    """
    patched = [torch._C.ScriptFunction, torch._C.ScriptMethod]
    calls = [kind.__call__ for kind in patched]
    if "expecttest" not in sys.modules:
        sys.modules["expecttest"] = types.ModuleType("expecttest")
        sys.modules["expecttest"].TestCase = unittest.TestCase
    from torch.testing._internal.common_optimizers import optim_db

    setattr(torch.backends, "__allow_nonbracketed_mutation_flag", True)
    for kind, call in zip(patched, calls, strict=True):
        kind.__call__ = call
    return next(info for info in optim_db if info.name == "Adam")
