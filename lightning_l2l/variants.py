"""The variants of a test: the same data with some settings changed."""

from typing import Any

from lightning_l2l.config_files import merge
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.suite.problems import make_data
from lightning_l2l.optimizees import EpisodeDataModule
from lightning_l2l.terminal import invalid_input


def make_variants(settings: dict[str, Any], variants: dict[str, dict[str, Any]]) -> dict[str, EpisodeDataModule]:
    """Makes the DataModule of each variant.

    Args:
        settings: the class path and the settings of the data.
        variants: by name, the settings that each changes.

    Raises:
        InvalidInputError: names the variant and what is wrong with it.
    """
    found = {}
    for name, changes in variants.items():
        try:
            found[name] = make_data(merge(settings, {"init_args": changes}))
        except Exception as error:
            if not (reason := invalid_input(error)):
                raise
            raise InvalidInputError(f"variants.{name}: {reason}") from None
        found[name].variant_name = name
    return found
