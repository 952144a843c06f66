"""A checkpoint's rule as a file of its own, with a model card."""

import csv
import re
import shlex
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_l2l.errors import InvalidInputError, require_suffix
from lightning_l2l.evaluation.markdown_table import markdown_table
from lightning_l2l.evaluation.results import NUMBERS
from lightning_l2l.parser import OneSentenceParser
from lightning_l2l.rules.files import FOLDER, PRETRAINED, described, write_rule
from lightning_l2l.rules.identity import digest
from lightning_l2l.terminal import PROGRAM
from lightning_l2l.trained.checkpoint import read_checkpoint, without_ckpt_path
from lightning_l2l.yaml_files import read_yaml

TO_BE_WRITTEN = "To be written."
CARD = """# {title}

An update rule of {numbers} numbers, learned as in arXiv:1606.04474. Use it in a loop of your own with

```python
optimizer = lightning_l2l.LearnedOptimizer(model.named_parameters(), "{name}")
```

## Training

| | |
|---|---|
| Command | {trained} |
| Seed | {seed} |
| Data | {data} |
| Date | {date} |
| Rule | {rule} |

## Results

{results}

The table is printed again by

{again}

## Not good for

{not_good_for}

## Licence

MIT, as the package.
"""


def export(
    ckpt_path: Path,
    output: Path,
    average_with: list[Path] | None = None,
    command: str = TO_BE_WRITTEN,
    not_good_for: str = TO_BE_WRITTEN,
) -> None:
    """Writes the rule of a checkpoint as NAME.safetensors, and what is known about it as the model card NAME.md.

    ``LearnedOptimizer(params, "NAME.safetensors")`` then uses it. Seeds, data, date and the table of results come from
    the checkpoint and its run's folder: run test with this checkpoint first.

    Args:
        ckpt_path: the checkpoint.
        output: NAME.safetensors.
        average_with: checkpoints of other runs that began from the same weights; the rule written is the mean of all.
        command: for the card: the command that trained it, such as "fit --config mnist.yaml --data.seed 1".
        not_good_for: for the card: where it fails.

    Raises:
        InvalidInputError: a checkpoint cannot be used, or does not fit the first, the output has another suffix, or the
            command has a quote without its other.
    """
    require_suffix("--output", output, ".safetensors")
    _check_quotes(command)
    checkpoint, tensors = _read(ckpt_path, "--ckpt_path")
    settings = checkpoint["hyper_parameters"]["rule"]
    others = average_with or []
    if others:
        tensors = _mean([tensors, *(_alike(path, settings, tensors) for path in others)])
    data = checkpoint.get("datamodule_hyper_parameters", {}).get("data", {})
    write_rule(tensors, output, settings, _data(checkpoint, data))
    numbers = sum(tensor.numel() for tensor in tensors.values())
    name = output.stem if output.resolve().parent == FOLDER else output.name  # as LearnedOptimizer finds it
    rows = [] if others else _rows_of(ckpt_path, tensors)  # no run's test was that of a mean
    card = _card(name, checkpoint, ckpt_path, others, rows, numbers, command, not_good_for)
    output.with_suffix(".md").write_text(card)
    print(f"Written: {output}, {numbers:,} numbers, and its card {output.with_suffix('.md')}")


def _check_quotes(command: str) -> None:
    try:
        shlex.split(command)
    except ValueError:
        raise InvalidInputError(f"--command is {command}, which has a quote without its other: give both.") from None


def _read(path: Path, flag: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint, and its rule's tensors by name."""
    if not path.is_file():
        raise InvalidInputError(f"{flag} is {path}, but there is no such file: give a checkpoint's path.")
    checkpoint = read_checkpoint(path, resumes=False, flag=flag)
    if checkpoint.get("hyper_parameters", {}).get("rule") is None:
        raise InvalidInputError(f"{flag} is {path}, which lacks the rule's settings: give one that fit wrote.")
    weights = checkpoint["state_dict"].items()  # of which a learner may have others beside its rule's
    return checkpoint, {name.removeprefix("rule."): tensor for name, tensor in weights if name.startswith("rule.")}


def _alike(path: Path, settings: Any, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose rule has these settings and tensors like these."""
    checkpoint, tensors = _read(path, "--average_with")
    if checkpoint["hyper_parameters"]["rule"] != settings or described(tensors) != described(like):
        raise InvalidInputError(
            f"--average_with is {path}, whose rule has other settings than that of --ckpt_path: give checkpoints of "
            "runs with the same rule."
        )
    return tensors


def _mean(rules: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of rules' weights; what is no weight is that of the first."""
    return {
        name: torch.stack([rule[name] for rule in rules]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in rules[0].items()
    }


def _card(
    name: str,
    checkpoint: dict[str, Any],
    path: Path,
    others: list[Path],
    rows: list[dict[str, str]],
    numbers: int,
    command: str,
    not_good_for: str,
) -> str:
    """The model card, in Markdown."""
    data = checkpoint.get("datamodule_hyper_parameters", {}).get("data", {})
    trained, again = command, command
    if command != TO_BE_WRITTEN:
        flags = _run_flags(rows[0], data.get("init_args", {})) if rows else []
        given = without_ckpt_path(shlex.split(command)[1:])
        test = shlex.join(["test", *given, *flags, "--ckpt_path", f"pretrained:{name}"])
        trained, again = f"`{PROGRAM} {command}`", f"```bash\n{PROGRAM} {test}\n```"
    if others:
        trained += f", then the mean of its weights and those of {', '.join(map(str, others))}"
    return CARD.format(
        title=Path(name).stem,
        name=name,
        numbers=f"{numbers:,}",
        trained=trained,
        seed=_seeds(path, data, command),
        data=_data(checkpoint, data),
        date=datetime.fromtimestamp(path.stat().st_mtime, UTC).date(),
        rule=_settings(checkpoint["hyper_parameters"]["rule"]),
        results=_results(rows, f"test with --ckpt_path pretrained:{name}" if others else "test, then export again"),
        again=again,
        not_good_for=textwrap.fill(not_good_for, 120),
    )


def _seeds(path: Path, data: dict[str, Any], command: str) -> str:
    """The seeds of the initial weights and of the episodes."""
    config = path.resolve().parents[1] / "config.yaml"
    settings = read_yaml(config, f"{config}, which is kept with the run,") if config.is_file() else {}
    seed = settings.get("seed_everything", "unknown")
    begun = re.search(rf"{PRETRAINED}(\S+)", command)  # else the seed drew them
    first = f"the first weights are those of {begun[1]}" if begun else f"{seed} for the first weights"
    return f"{first}, {data.get('init_args', {}).get('seed', 'unknown')} for the episodes"


def _data(checkpoint: dict[str, Any], data: dict[str, Any]) -> str:
    """What the rule was trained on."""
    found = checkpoint["hyper_parameters"].get("variant", "unknown")
    source = f"{data.get('class_path', 'unknown')}, {found}"
    settings = data.get("init_args", {})
    changes = {key: settings.get(key) for key in ("random_scaling", "companion")}
    return ", ".join([source, *(f"{key} {value}" for key, value in changes.items() if value)])


def _run_flags(row: dict[str, str], settings: dict[str, Any]) -> list[str]:
    """The flags that give a test the steps and episodes of a row of results, where the data's settings differ."""
    tested = {"horizon": row["horizon"], "test_episodes": row["episodes"]}
    return [part for key, n in tested.items() if int(n) != settings.get(key) for part in (f"--data.{key}", n)]


def _settings(rule: Any) -> str:
    """A rule's class and settings on one line."""
    if isinstance(rule, dict) and "class_path" in rule:
        settings = ", ".join(f"{key}={_settings(value)}" for key, value in rule.get("init_args", {}).items())
        return f"{rule['class_path'].rpartition('.')[2]}({settings})"
    if isinstance(rule, dict):
        return "{" + ", ".join(f"{key}: {_settings(value)}" for key, value in rule.items()) + "}"
    return str(rule)


def _rows_of(path: Path, tensors: dict[str, Tensor]) -> list[dict[str, str]]:
    """The rows of the last test's first variant; none if the checkpoint's rule was not the one tested."""
    results = path.resolve().parents[1] / "results.csv"
    if not results.is_file():
        return []
    with results.open() as file:
        rows = list(csv.DictReader(file))
    tested = rows[0].get("weights") if rows else None  # files of an earlier version do not say
    if tested and tested != digest(tensors):
        print(f"The last test in {results.parent} was of other weights: the card has no results.")
        return []
    return [row for row in rows if row["variant"] == rows[0]["variant"]]


def _results(rows: list[dict[str, str]], run: str) -> str:
    """The table of a test, in Markdown; without one, what to run."""
    if not rows:
        return f"{TO_BE_WRITTEN} (Run {run}.)"
    tuned, accuracy = ([key] if any(row.get(key) for row in rows) else [] for key in ("tuned_with", "accuracy"))
    shown = ["rule", "learning_rate", *tuned, *NUMBERS, *accuracy]
    cells = []
    for row in rows:
        untuned = "" if row.get("kind") == "baseline" else "learned"
        rate = f"{float(row['learning_rate']):.3g}" if row["learning_rate"] else untuned
        cells.append([{**row, "learning_rate": rate}[column] for column in shown])
    ends = ", with the accuracy where runs end, on examples that they have not trained on" if accuracy else ""
    title = f"Mean loss over {rows[0]['episodes']} fresh episodes of {rows[0]['horizon']} steps, of the rule and of "
    table = markdown_table(shown, cells, left=len(shown))
    return f"{title}baselines with tuned learning rates{ends}.\n\n{table}"


def main(arguments: list[str]) -> None:
    """Runs the command."""
    parser = OneSentenceParser(prog=f"{PROGRAM} export", description=(export.__doc__ or "").split("\n\n")[0])
    parser.add_function_arguments(export, as_group=False)
    export(**vars(parser.parse_args(arguments)))
