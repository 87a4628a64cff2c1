"""Conditions that select runs of a sweep: ``pareto``, or comparisons of documented fields such as ``drop<0.5``.

A condition is parsed and never evaluated as code. Accuracies are those on the validation split, because the test split
must not select anything. Latencies are those that exports of the runs have measured.
"""

from __future__ import annotations

import logging
import math
import operator
import re
from collections.abc import Callable, Container, Iterable, Sequence

from mmp.errors import MmpError, nearest
from mmp.pruning.patterns import UNSTRUCTURED
from mmp.report.groups import Group, groups_of
from mmp.report.results import Run

log = logging.getLogger(__name__)

PARETO, ALL, LATENCY = "pareto", "all", "latency"
FIELDS: dict[str, tuple[str, Callable[[Run], float | str]]] = {
    "sparsity": ("pruned weights over prunable weights, in [0, 1]", lambda run: run.sparsity),
    "sparsity_all": (
        "pruned weights, or removed parameters, over all parameters, in [0, 1]",
        lambda run: run.sparsity_all,
    ),
    "size_mb": (
        "size of kept weights and masks, or of the network without removed channels, in MB",
        lambda run: run.megabytes,
    ),
    "accuracy": ("validation accuracy, in [0, 1]", lambda run: run.validation),
    "drop": (
        "validation accuracy lost against the dense model, in points",
        lambda run: 100 * (run.dense_validation - run.validation),
    ),
    "model": ("name of the model", lambda run: run.model),
    "data": ("name of the data set", lambda run: run.data),
    "signal": ("name of the signal; of a baseline, its criterion", lambda run: run.signal),
    "strategy": ("name of the strategy", lambda run: run.strategy),
    "pattern": ("mask pattern: none, 2:4, 4x1, ...", lambda run: run.pattern or str(UNSTRUCTURED)),
    "ranges": ("name of the range table", lambda run: run.ranges),
    "schedule": ("name of the schedule", lambda run: run.schedule),
    "reconstruct": ("name of the reconstruction", lambda run: run.reconstruct),
    "finetune": ("name of the fine-tuning recipe", lambda run: run.finetune),
    "seed": ("seed, a number", lambda run: run.seed),
}
_LATENCIES = {
    LATENCY: "measured latency over the dense model's, for one image, of the run's fastest export",
    f"{LATENCY}_onnx": f"the same of target=onnx, and so on ({LATENCY}_openvino)",
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
        conditions: Conditions separated by commas, such as ``pareto,drop<0.5``. Each is ``all``, ``pareto`` (efficient
            among all runs, by validation accuracy), or a field of `FIELDS`, one of ``< <= > >= = !=`` and a value.
            The fields ``latency``, of a run's fastest export, and ``latency_onnx`` and so on, of one target, leave out
            runs without such a measurement, with a warning.

    Raises:
        MmpError: if a condition is malformed, no run is completed, no run has a latency that a condition compares, or
            no run meets all conditions.
    """
    groups = groups_of(runs)
    completed = [run for group in groups for run in group.runs]
    if not completed:
        raise MmpError(f"select={conditions}: the sweep has no completed run")
    efficient = _efficient_folders(groups)
    try:
        tests = [_test_of(condition.strip(), efficient, completed) for condition in conditions.split(",")]
    except MmpError as error:
        raise MmpError(f"select={conditions}: {error}") from None
    chosen = [run for run in completed if all(meets(run) for meets in tests)]
    if not chosen:
        raise MmpError(f"select={conditions}: no run meets this; mmp-report FOLDER --tables lists all runs")
    return chosen


def _efficient_folders(groups: Iterable[Group]) -> set[str]:
    """Return the folders of all runs of Pareto-efficient configurations."""
    configurations = [one for group in groups for one in group.configurations]
    return {run.folder for one in configurations if one.efficient for run in one.runs}


def _test_of(condition: str, efficient: Container[str], completed: Sequence[Run]) -> Callable[[Run], bool]:
    """Return the function that tests a run for a condition.

    Args:
        condition: One condition.
        efficient: The folders of the Pareto-efficient runs.
        completed: The completed runs.
    """
    if condition == ALL:
        return lambda _: True
    if condition == PARETO:
        return lambda run: run.folder in efficient
    return _comparison(condition, completed)


def _comparison(condition: str, completed: Sequence[Run]) -> Callable[[Run], bool]:
    """Return the function that compares a field of a run, for a condition such as ``drop<0.5``."""
    match = re.fullmatch(r"(\w+)\s*(<=|>=|==|!=|<|>|=)\s*(\S+)", condition)
    if match is None:
        word = re.match(r"\w*", condition)
        hint = nearest(word.group() if word else "", [PARETO, ALL, *FIELDS, LATENCY])
        raise MmpError(f"{condition!r} must be {PARETO}, {ALL}, or a comparison such as drop<0.5; {hint}")
    field, sign, text = match.groups()
    if field.partition("_")[0] == LATENCY:
        limit, ratios = _number(field, text), _latencies(field, completed)
        return lambda run: run.folder in ratios and _COMPARE[sign](ratios[run.folder], limit)
    if field not in FIELDS:
        raise MmpError(f"no such field {field!r}; {nearest(field, [*FIELDS, LATENCY])}")
    value = FIELDS[field][1]
    wanted: float | str = text
    if not isinstance(value(Run("", "")), str):
        wanted = _number(field, text)
    elif sign not in ("=", "==", "!="):
        raise MmpError(f"{field} is a name and must be compared with = or !=")
    return lambda run: _COMPARE[sign](value(run), wanted)


def _latencies(field: str, completed: Sequence[Run]) -> dict[str, float]:
    """Return the latency of each run, by its folder, of its fastest export or of one target. Others are left out."""
    target = field.partition("_")[2]
    chosen = {run.folder: [t.latency for t in run.timings if target in ("", t.target)] for run in completed}
    latencies = {folder: min(found) for folder, found in chosen.items() if found}
    way_out = f"measure it by mmp-export FOLDER target={target or 'onnx'} select=all"
    if not latencies:
        fields = ", ".join(sorted({f"{LATENCY}_{timing.target}" for run in completed for timing in run.timings}))
        raise MmpError(f"{field}: no run has this latency; {f'compare {fields}, or ' if fields else ''}{way_out}")
    if without := sorted(chosen.keys() - latencies.keys()):
        which = f"{len(without)} of {len(completed)} runs, such as {without[0]}, have no {field} and are left out"
        log.warning("%s; %s", which, way_out)
    return latencies


def _number(field: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise MmpError(f"{field} must be compared with a number, not with {text!r}")
    return value


def conditions_help(indent: str = "  ") -> str:
    """Return the fields that can be compared, one per line, for the help of a command."""
    meanings = {**{name: meaning for name, (meaning, _) in FIELDS.items()}, **_LATENCIES}
    return "\n".join(f"{indent}{name:<16}{meaning}" for name, meaning in meanings.items())
