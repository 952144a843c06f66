"""Refuses settings of old configs and checkpoints that ``model.stages`` has replaced, and shows the new table."""

import math
from itertools import pairwise
from typing import Any

from lightning_l2l.errors import InvalidInputError

SCHEDULE = {"curriculum": None, "second_order": 0.0, "hessian_every": None, "second_order_unroll": None}  # defaults
MACHINE = {"memory": "LIGHTNING_L2L_MEMORY", "compiled": "LIGHTNING_L2L_COMPILED"}  # environment variables
OLD_KEYS = (*SCHEDULE, *MACHINE)


def refuse_old_schedule(settings: dict[str, Any], epochs: Any) -> None:
    """Refuses settings of an old learner.

    Args:
        settings: of the learner, old and new.
        epochs: ``trainer.max_epochs`` as given, or None.

    Raises:
        InvalidInputError: shows the equivalent table, to be copied.
    """
    old = [key for key in OLD_KEYS if key in settings]
    if not old:
        return
    given = ", ".join(f"model.{key} is {as_flow(settings[key])}" for key in old)
    those, them = ("that is", "it") if len(old) == 1 else ("those are", "them")
    table = f"--model.stages={as_flow(old_table(settings, epochs))}" if SCHEDULE.keys() & old else ""
    fixes = ["give the table below"] if table else []
    fixes += [f"for {key} set the environment variable {MACHINE[key]}" for key in MACHINE if key in old]
    raise InvalidInputError(
        f"{given}, but {those} no longer a setting: remove {them} and {', and '.join(fixes)}.", table
    )


def refuse_another_schedule(kept: dict[str, Any], stages: list[dict[str, Any]] | None, epochs: int) -> None:
    """Refuses to resume an old checkpoint under a schedule other than its own.

    Args:
        kept: the settings that the checkpoint was trained with.
        stages: the rows of ``model.stages`` that are given now.
        epochs: ``trainer.max_epochs``.

    Raises:
        InvalidInputError: shows the table that is equivalent to its settings.
    """
    if "stages" in kept or not SCHEDULE.keys() & kept.keys():
        return
    table = old_table(kept, epochs)
    if _comparable(table) != _comparable(stages or [{}]):
        raise InvalidInputError(
            f"model.stages is {as_flow(stages)}, but the checkpoint was trained with the table below: give that, or "
            "start anew without --ckpt_path.",
            f"--model.stages={as_flow(table)}",
        )


def _comparable(table: list[dict[str, Any]]) -> list[tuple]:
    total = sum(row.get("share", 1) for row in table)
    rows = []
    for row in table:
        meta_gradient = row.get("meta_gradient") or {}
        name = meta_gradient.get("class_path", "FirstOrder").rpartition(".")[2]
        settings = (meta_gradient.get("init_args") or {}).get("hessian_every", 1)
        rows.append((round(row.get("share", 1) / total, 9), row.get("horizon"), row.get("unroll"), name, settings))
    return rows


def old_table(settings: dict[str, Any], epochs: Any) -> list[dict[str, Any]]:
    """The table of stages that is equivalent to the four old settings, in whole epochs if their number is known.

    Raises:
        InvalidInputError: an old setting has a value that was never valid.
    """
    values = {key: settings.get(key, default) for key, default in SCHEDULE.items()}
    _refuse_invalid(values)
    horizons = values["curriculum"] or [None]
    count = epochs if _is_count(epochs) else 100 * len(horizons)
    second = round((1 - float(values["second_order"] or 0)) * count)
    longer = [math.ceil(number * count / len(horizons)) for number in range(len(horizons))]
    ends = sorted({*longer, second, count} & set(range(count + 1)))
    rows: list[dict[str, Any]] = []
    for first, end in pairwise(ends):
        row: dict[str, Any] = {"share": end - first}
        if (horizon := horizons[first * len(horizons) // count]) is not None:
            row["horizon"] = horizon
        if first >= second:
            if values["second_order_unroll"]:
                row["unroll"] = values["second_order_unroll"]
            row["meta_gradient"] = _second_order(values["hessian_every"])
        if rows and _but_share(rows[-1]) == _but_share(row):
            rows[-1]["share"] += row["share"]
        else:
            rows.append(row)
    shares = math.gcd(*(row["share"] for row in rows))
    return [row | {"share": row["share"] // shares} for row in rows]


def _refuse_invalid(values: dict[str, Any]) -> None:
    """Refuses old settings that have no table."""
    curriculum, share = values["curriculum"], values["second_order"]
    valid = {
        "curriculum": curriculum is None or (isinstance(curriculum, list) and all(map(_is_count, curriculum))),
        "second_order": share is None or (type(share) in (int, float) and 0 <= share <= 1),
        **{key: values[key] is None or _is_count(values[key]) for key in ("hessian_every", "second_order_unroll")},
    }
    if invalid := [key for key in valid if not valid[key]]:
        given = ", ".join(f"model.{key} is {as_flow(values[key])}" for key in invalid)
        raise InvalidInputError(
            f"{given}, which was never valid and is no longer a setting: remove {' and '.join(invalid)}, and give "
            "model.stages=[{share: 3, horizon: 100}, {share: 2, horizon: 200}], for example."
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _second_order(hessian_every: int | None) -> dict[str, Any]:
    if hessian_every is None:
        return {"class_path": "lightning_l2l.meta_gradients.Exact"}
    linearized: dict[str, Any] = {"class_path": "lightning_l2l.meta_gradients.Linearized"}
    return linearized | ({"init_args": {"hessian_every": hessian_every}} if hessian_every != 1 else {})


def _but_share(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "share"}


def as_flow(table: Any) -> str:
    """YAML on one line."""
    if isinstance(table, dict):
        return "{" + ", ".join(f"{key}: {as_flow(value)}" for key, value in table.items()) + "}"
    if isinstance(table, list):
        return "[" + ", ".join(map(as_flow, table)) + "]"
    return str(table).lower() if isinstance(table, bool) else "null" if table is None else str(table)
