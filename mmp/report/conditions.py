"""Which runs of a sweep: ``pareto``, or comparisons of a few documented fields; nothing of it is ever evaluated.

Everything that can be chosen by is known before test data are: accuracies are those of the validation split.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence

from mmp.errors import MmpError, nearest
from mmp.pruning.patterns import UNSTRUCTURED
from mmp.report.groups import groups_of
from mmp.report.results import Run

PARETO, ALL = "pareto", "all"
FIELDS: dict[str, tuple[str, Callable[[Run], float | str]]] = {
    "sparsity": ("pruned weights over prunable ones, in [0, 1]", lambda run: run.sparsity),
    "sparsity_all": ("pruned weights over all parameters, in [0, 1]", lambda run: run.sparsity_all),
    "size_mb": ("megabytes of kept weights and masks", lambda run: run.megabytes),
    "accuracy": ("validation accuracy, in [0, 1]", lambda run: run.validation),
    "drop": (
        "points of validation accuracy lost against the dense model",
        lambda run: 100 * (run.dense_validation - run.validation),
    ),
    "model": ("name", lambda run: run.model),
    "data": ("name", lambda run: run.data),
    "signal": ("name, or that of the criterion of a baseline", lambda run: run.signal),
    "strategy": ("name", lambda run: run.strategy),
    "pattern": ("none, 2:4, 4x1, ...", lambda run: run.pattern or str(UNSTRUCTURED)),
    "ranges": ("name", lambda run: run.ranges),
    "schedule": ("name", lambda run: run.schedule),
    "reconstruct": ("name", lambda run: run.reconstruct),
    "finetune": ("name", lambda run: run.finetune),
    "seed": ("number", lambda run: run.seed),
}
_COMPARE: dict[str, Callable[[float | str, float | str], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}


def select(runs: Iterable[Run], conditions: str) -> list[Run]:
    """Return the completed runs that meet all conditions.

    Args:
        runs: Runs of a sweep.
        conditions: Separated by commas: ``all``, ``pareto`` (efficient among all runs, on validation data), or a field
            of `FIELDS`, one of ``< <= > >= = !=``, and a value. ``pareto,drop<0.5`` for example.

    Raises:
        MmpError: if a condition is not of this form, with the nearest field, or no run meets all of them.
    """
    groups = groups_of(runs)
    chosen = [run for group in groups for run in group.runs]
    if not chosen:
        raise MmpError(f"select={conditions}: none of these runs is completed")
    efficient = {run.folder for group in groups for one in group.configurations if one.efficient for run in one.runs}
    for condition in conditions.split(","):
        if condition.strip() == PARETO:
            chosen = [run for run in chosen if run.folder in efficient]
        elif condition.strip() != ALL:
            try:
                meets = _read(condition.strip())
            except MmpError as error:
                raise MmpError(f"select={conditions}: {error}") from None
            chosen = [run for run in chosen if meets(run)]
    if not chosen:
        raise MmpError(f"select={conditions}: no run is like that; python -m mmp.report FOLDER --tables shows them")
    return chosen


def _read(condition: str) -> Callable[[Run], bool]:
    match = re.fullmatch(r"(\w+)\s*(<=|>=|==|!=|<|>|=)\s*(\S+)", condition)
    if match is None:
        word = re.match(r"\w*", condition)
        told = nearest(word.group() if word else "", [PARETO, ALL, *FIELDS])
        raise MmpError(f"{condition!r} must be {PARETO}, {ALL}, or a comparison such as drop<0.5; {told}")
    field, sign, text = match.groups()
    if field not in FIELDS:
        raise MmpError(f"no such field {field!r}; {nearest(field, FIELDS)}")
    value = FIELDS[field][1]
    wanted: float | str = text
    if not isinstance(value(Run("", "")), str):
        wanted = _number(text)
        if math.isnan(wanted):
            raise MmpError(f"{field} is a number, {text!r} is not")
    elif sign not in ("=", "==", "!="):
        raise MmpError(f"{field} is a name; compare it with = or !=")
    return lambda run: _COMPARE[sign](value(run), wanted)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def conditions_help(indent: str = "  ") -> str:
    """Return what can be chosen by, a field a line."""
    rows: Sequence[tuple[str, str]] = [(name, told) for name, (told, _) in FIELDS.items()]
    return "\n".join(f"{indent}{name:<14}{told}" for name, told in rows)
