"""The command that makes a suite's table of reference losses."""

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.reference import write_reference
from lightning_l2l.evaluation.suite.problems import make_data
from lightning_l2l.optimizees import Suite
from lightning_l2l.seeds import settings_of
from lightning_l2l.terminal import ShortParser

EPISODES = 16  # of each task


def main(arguments: list[str], run: Callable[[list[str]], object]) -> None:
    """Runs the command.

    Args:
        arguments: its flags, and those of fit, of which the data counts.
        run: runs another command line.

    Raises:
        InvalidInputError: the data is no suite.
    """
    parser = ShortParser("reference", write_reference.__doc__)
    parser.usage = "%(prog)s --output FILE [all flags of fit]"
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .npz to write")
    own, flags = parser.parse_known_args(arguments)
    settings = settings_of(flags, run)["data"]
    if not settings:
        raise InvalidInputError(
            "data is missing: give the Suite whose table is to be written, such as --config everyday.yaml."
        )
    if not settings["class_path"].endswith(".Suite"):
        raise InvalidInputError(f"data is {settings['class_path']}, but only a Suite has a table: give a Suite.")
    settings["init_args"] |= {"reference": None, "episodes_per_task": EPISODES}
    suite = make_data(settings)
    assert isinstance(suite, Suite)
    with tqdm(desc="reference", total=len(suite.tasks), dynamic_ncols=True) as bar:
        write_reference(suite, own.output, lambda task: bar.update())
    print(f"Written: {own.output}")
