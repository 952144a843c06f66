"""Trained rules of the package: NAME.safetensors beside a model card NAME.md; ``rules.files`` reads them."""

from lightning_l2l.rules.files import FOLDER, KEY, load_rule, names, read_rule, save_rule, write_rule

__all__ = ["FOLDER", "KEY", "load_rule", "names", "read_rule", "save_rule", "write_rule"]
