"""Trained rules: a few thousand numbers each, as NAME.safetensors, beside a model card NAME.md.

A file holds tensors, and in its header the rule's class and settings as JSON, what it was trained on in words, the
version of this format, and a digest of all of it. Reading it executes nothing: only classes of ``lightning_l2l.rules``
are ever instantiated from it.
"""

import hashlib
import json
import logging
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import lightning_l2l.rules
from lightning_l2l.digests import content
from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.rules import UpdateRule
from lightning_l2l.rules.shaped import take_shapes
from lightning_l2l.whole_files import replacing

FOLDER = Path(__file__).parents[1] / "pretrained"
PRETRAINED = "pretrained:"  # before the name of a trained rule, where a checkpoint may stand too
KEY = "lightning_l2l.rule"  # of the rule's class and settings in a file's header
DATA_KEY = "lightning_l2l.data"  # what it was trained on, in words
VERSION_KEY, DIGEST_KEY = "lightning_l2l.version", "lightning_l2l.digest"
REPEATED = 1 << 20  # bytes at most of a tensor that repeats numbers, since a small file may declare any number of them
VERSION = 2  # of the format; the first one had neither a version nor a digest

log = logging.getLogger(__name__)


def names() -> list[str]:
    """The trained rules that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("[!.]*.safetensors"))


def load_rule(name: str | PathLike, rule: UpdateRule | None = None) -> UpdateRule:
    """Returns a trained rule.

    Args:
        name: one of the package's own, such as ``mnist``, or a file's path.
        rule: an untrained rule, which gets the file's numbers. This is how to load a rule of your own class, since only
            the package's own classes are ever instantiated from a file.

    Raises:
        InvalidInputError: there is no such rule, or the file cannot be used.
    """
    settings, tensors = read_rule(name)
    rule = rule or make_rule(settings, tensors, name)
    check_fit(rule, tensors, name)
    rule.load_state_dict(tensors)
    return rule


def check_fit(rule: UpdateRule, tensors: Mapping[str, Tensor], name: str | PathLike) -> None:
    """Refuses tensors that are not those of a rule, by their names, shapes and kinds.

    Raises:
        InvalidInputError: names the first.
    """
    take_shapes(rule, tensors)
    kept, here = described(tensors), described(rule.state_dict())
    for key in (*here, *kept):
        if kept.get(key) != here.get(key):
            raise InvalidInputError(
                f"rule is {name}, whose numbers do not fit {type(rule).__name__}: {key} is {kept.get(key, 'missing')} "
                f"there, and {here.get(key, 'unknown')} here: give another file, or other settings."
            )


def described(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The kind and the shape of each tensor, in words."""
    kinds = {True: "numbers", False: "whole numbers"}
    return {key: f"{kinds[one.is_floating_point()]} of shape {tuple(one.shape)}" for key, one in tensors.items()}


def save_rule(rule: UpdateRule, path: str | PathLike, settings: dict[str, Any], data: str = "") -> None:
    """Writes a rule for ``load_rule``.

    Args:
        rule: the trained rule.
        path: the file to write, by convention with the suffix .safetensors.
        settings: its class_path and init_args, as in a config.
        data: what it was trained on, in words.
    """
    write_rule(rule.state_dict(), path, settings, data)


def write_rule(tensors: dict[str, Tensor], path: str | PathLike, settings: dict[str, Any], data: str = "") -> None:
    """As ``save_rule``, for a rule's ``state_dict``."""
    # copies, since weights may be tied, which safetensors refuses
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    header = {KEY: json.dumps(settings, sort_keys=True), DATA_KEY: data, VERSION_KEY: str(VERSION)}
    header[DIGEST_KEY] = digest_of(header, tensors)
    with replacing(Path(path)) as part:
        part.write_bytes(save(tensors, header))


def digest_of(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """A digest of a rule's header, but for the digest in it, and its tensors."""
    described = sorted(item for item in header.items() if item[0] != DIGEST_KEY)
    parts = [repr(described), *(f"{name} {content(tensor)}" for name, tensor in sorted(tensors.items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_rule(name: str | PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the settings (class_path and init_args) and the tensors of a trained rule's file.

    Raises:
        InvalidInputError: there is none, or it is truncated or not such a file.
    """
    path = _path_of(name)
    if not path.is_file():
        raise InvalidInputError(
            f"rule is {name}, which is neither a file nor one of the package's own: choose {', '.join(names())}."
        )
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            _check_version(header, name)
            settings = json.loads(header[KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dictionary
        damaged = DIGEST_KEY in header and header[DIGEST_KEY] != digest_of(header, tensors)
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"rule is {name}, which is truncated or was not written by export or save_rule: give another file."
        ) from error
    if damaged:
        raise InvalidInputError(
            f"rule is {name}, which is damaged: it has another digest than its header says, so give another copy."
        )
    check_finite(tensors, f"rule is {name}")
    return settings, tensors


def data_of(name: str | PathLike) -> str:
    """What a rule that ``read_rule`` reads was trained on, in words; empty if its file does not say."""
    with safe_open(_path_of(name), "pt") as file:
        return (file.metadata() or {}).get(DATA_KEY, "")


def _path_of(name: str | PathLike) -> Path:
    return FOLDER / f"{name}.safetensors" if str(name) in names() else Path(name)


def _check_version(header: Mapping[str, str], name: str | PathLike) -> None:
    """Refuses files of later versions; a header that has lost its version or its digest is no header."""
    if header.keys() == {KEY}:
        log.warning("%s was written before files of rules had a digest: export it again to protect it.", name)
        return
    version = int(header[VERSION_KEY])
    if version > VERSION:
        raise InvalidInputError(
            f"rule is {name}, which is of version {version} of the format of rules, but this package knows those up to "
            f"{VERSION}: install a later version of lightning-l2l, or give another file."
        )
    header[DIGEST_KEY]


def check_finite(tensors: Mapping[str, Tensor], subject: str) -> None:
    """Refuses NaN and infinity.

    Args:
        tensors: by name.
        subject: what an error calls the file, such as "rule is mine.safetensors".

    Raises:
        InvalidInputError: a number is NaN or infinite.
    """
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InvalidInputError(f"{subject}, in which {key} has numbers that are not finite: give another file.")


def read_safely(path: str | PathLike) -> Any:
    """Returns what ``torch.save`` wrote to a file, without executing anything in it; None if the file is damaged.

    A file that holds much less than it stands for counts as damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in file.infolist())
            whole = stored and file.testzip() is None  # torch.load does not compare checksums
        found = torch.load(path, map_location="cpu", weights_only=True) if whole else None
        return found if all(map(_is_whole, tensors_in(found))) else None
    except Exception:  # damaged bytes may mean anything, and so raise anything
        return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dictionaries and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(entry)


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is a plain one on the CPU, and no large one that repeats a few numbers."""
    plain = tensor.is_cpu and tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
    return plain and tensor.numel() * tensor.element_size() <= max(tensor.untyped_storage().nbytes(), REPEATED)


def make_rule(settings: Any, tensors: Mapping[str, Tensor], name: str | PathLike) -> UpdateRule:
    """Makes an untrained rule; only the package's own classes are allowed.

    Args:
        settings: its class_path and init_args, as a file holds them.
        tensors: its trained numbers, whose shapes are compared before memory for others is taken.
        name: the file's, for the error message.

    Raises:
        InvalidInputError: they name a class that is not the package's, or do not fit theirs or the tensors.
    """
    try:
        # initial weights use up none of the caller's random numbers
        with torch.random.fork_rng(devices=[]), default_type(torch.float32):
            with torch.device("meta"):
                check_fit(_made(settings, name), tensors, name)
            with torch.device("cpu"):
                return _made(settings, name)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"rule is {name}, whose header has settings that do not fit its class ({first_line(error)}): give another "
            "file."
        ) from error


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Gives new tensors this type where nothing else is said, whatever type the caller prefers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _made(settings: Any, name: str | PathLike) -> UpdateRule:
    """A rule of the package's own class."""
    own = {f"lightning_l2l.rules.{key}": getattr(lightning_l2l.rules, key) for key in lightning_l2l.rules.__all__}
    rules = {key: value for key, value in own.items() if isinstance(value, type) and issubclass(value, UpdateRule)}

    def make(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is no number")
        if not isinstance(value, dict):
            return value
        if "class_path" not in value:
            return {key: make(entry) for key, entry in value.items()}
        if (path := str(value["class_path"])) not in rules:
            raise InvalidInputError(
                f"rule is {name}, which is of {path}: that is none of the package's own rules, so make it yourself and "
                "give it to load_rule as rule."
            )
        return rules[path](**make(value.get("init_args", {})))

    rule = make(settings)
    if not isinstance(rule, UpdateRule):
        raise InvalidInputError(f"rule is {name}, whose header has no class_path: give another file.")
    return rule
