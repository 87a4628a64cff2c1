"""Timings: the measured latency of a run's exports for one image, with its quartiles and the machine."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmp.errors import MmpError
from mmp.report.fields import number, objects, text
from mmp.report.json_files import content_of
from mmp.report.latencies import EXPORTS, latencies_of

LATENCIES, LATENCY_PICTURE = "latency.csv", "latency.png"  # in the folder of a report, if there are timings


@dataclass(frozen=True)
class Timing:
    """The latency of one exported file for one image, as a share of the dense model's in the same engine.

    Attributes:
        target: The target of the export, such as ``onnx``.
        latency: Median over pairs of measurements; below 1, the file is faster than the dense model.
        lower: Lower quartile; the median if it is unknown.
        upper: Upper quartile; the median if it is unknown.
        place: Engine, processor and number of threads.
    """

    target: str
    latency: float
    lower: float
    upper: float
    place: str


def timings_of(run: Path) -> tuple[Timing, ...]:
    """Return the timings of a run's exports, by target. An export that was not timed or cannot be read has none.

    Args:
        run: The run's folder.
    """
    exports = {path.parent.name: path for path in run.glob(EXPORTS)}
    latencies = latencies_of(run) if exports else {}
    return tuple(
        _timing(target, latency, content_of(exports[target]))
        for target, latency in latencies.items()
        if math.isfinite(latency)
    )


def timings_csv(timings: Mapping[str, Iterable[Timing]]) -> str:
    """Return timings as CSV, one line per exported file.

    Args:
        timings: The timings of each run, by its folder.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, ["folder", *(field.name for field in fields(Timing))], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"folder": folder, **asdict(timing)} for folder, found in timings.items() for timing in found)
    return out.getvalue()


def _timing(target: str, latency: float, export: Mapping[str, Any]) -> Timing:
    lower, upper = _quartiles(export, latency)
    return Timing(target, latency, lower, upper, _place(export))


def _quartiles(export: Mapping[str, Any], latency: float) -> tuple[float, float]:
    first = next(one for one in objects(export, "latency") if one.get("batch") == 1)
    match first.get("quartiles"):
        case [int() | float() as lower, int() | float() as upper] if lower <= latency <= upper < math.inf:
            return float(lower), float(upper)
    return latency, latency


def _place(export: Mapping[str, Any]) -> str:
    try:
        threads = number(export, "threads")
        return f"{text(export, 'engine')}, {text(export, 'processor')}, {threads} thread{'' if threads == 1 else 's'}"
    except MmpError:
        return ""
