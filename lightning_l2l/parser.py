"""The parser of commands and configs: one sentence an error, and classes only where a setting's type asks for one."""

import re
from collections.abc import Callable
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings
from pytorch_lightning.cli import LightningArgumentParser

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.yaml_files import load_yaml

# Settings without a type of their own stay data, whatever class they name; and no class path may name what runs
# commands or code: jsonargparse refuses its list of such modules instead of warning of them.
set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=[])
_load = get_loader("yaml")


def _load_within_limits(text: str) -> Any:
    return load_yaml(text, "a setting", _load)


set_loader("yaml", _load_within_limits, (yaml.YAMLError,))


CKPT_PATH = (
    "A path; best or last, of the run with the highest number that has one; or pretrained:NAME, a rule of this package "
    "or an exported file. fit goes on with a run, but begins a new one from a pretrained rule."
)


class OneSentenceParser(LightningArgumentParser):
    """Says what is wrong in one sentence, without the usage that would bury it."""

    more_help = ""
    replaced = 0  # configs, the first ones, whose learner a later one replaces

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.help_of: dict[str, str] = {}  # by argument, in place of what Lightning says
        super().__init__(*args, **kwargs)
        self.add_instantiator(_make, object)

    def instantiate_classes(self, *args: Any, **kwargs: Any) -> Any:
        """Makes the objects of a config.

        Raises:
            InvalidInputError: one of them refuses its settings, or a setting names a class and takes none.
        """
        try:
            return super().instantiate_classes(*args, **kwargs)
        except _Refused as refused:
            raise InvalidInputError(str(refused)) from refused.__cause__

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Adds help that does not belong to an argument, and replaces that of others."""
        for action in self._actions:
            action.help = self.help_of.get(action.dest, action.help)
        return super().format_help(*args, **kwargs) + self.more_help

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises ``InvalidInputError``, which ``main`` prints."""
        raise InvalidInputError(shortened(message)) from ex


def shortened(message: str) -> str:
    """What jsonargparse says is wrong with a setting, without all that its type would have allowed."""
    text = " ".join(message.split())
    for pattern, put in (
        (r'^Parser key "(.+?)":', r"\1:"),
        (r"- Expected a path but .+? either not accessible or invalid ", ""),
        (r"Does not validate against any of the Union subtypes Subtypes: .+? Errors:", ""),
        (r"Subclass types expect one of: .+?(?= - Expected| - Not a valid| Given value|$)", ""),
        (r"- Expected a <class 'NoneType'>", ""),
        (r"Given value type: .+? Given value: ", "Given: "),
        (r"<class '(?:\w+\.)*(\w+)'>", r"\1"),
    ):
        text = re.sub(pattern, put, text)
    text, _, value = text.partition("Given: ")
    key, _, reasons = text.partition(": ")
    different = dict.fromkeys(filter(None, (reason.strip(" -") for reason in reasons.split(" - "))))
    if not value or not different:
        return text
    return f"{key} is {value[:60]}, which does not fit: {'; or '.join(different)[:180]}."


class _Refused(BaseException):
    """Passes an ``InvalidInputError`` on; for any ``Exception``, a union of types would try its next type."""


def _make(class_type: Callable[..., Any], *args: Any, applied_instantiation_links: Any = None, **kwargs: Any) -> Any:
    """Makes an object; refuses class paths in settings whose type asks for no class, which nothing would make."""
    for key, value in kwargs.items():
        if class_path := _class_path(value):
            raise _Refused(
                f"{key} of {getattr(class_type, '__name__', class_type)} names the class {class_path}, but its type "
                "asks for no class: give a value, or annotate it in the code with the class that it takes."
            )
    try:
        return class_type(*args, **kwargs)
    except InvalidInputError as error:
        raise _Refused(str(error)) from error


def _class_path(value: Any) -> str | None:
    """The first class path that was left in a value."""
    if isinstance(value, list | tuple):
        return next(filter(None, map(_class_path, value)), None)
    if not isinstance(value, dict | Namespace):
        return None
    settings = value if isinstance(value, dict) else vars(value)
    if "class_path" in settings:
        return str(settings["class_path"])
    return next(filter(None, map(_class_path, settings.values())), None)
