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

_EXPORTS = "export/*/export.json"  # in the folder of a run: an export of each target
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


def timings_of(run: Path, digests: Any = None) -> tuple[Timing, ...]:
    """Return the timings of a run's exports, by target.

    An export has none if it was not timed, if it is of earlier weights of the run, or if it cannot be read.

    Args:
        run: The run's folder.
        digests: The entry ``digests`` of its result: the checksums of its weights and masks, by file name.
    """
    found = (_timing(path, digests if isinstance(digests, dict) else {}) for path in sorted(run.glob(_EXPORTS)))
    return tuple(timing for timing in found if timing is not None)


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


def _timing(path: Path, digests: Mapping[str, Any]) -> Timing | None:
    """Return the timing of an export for one image, None if there is none."""
    try:
        export = content_of(path)
        first = next((one for one in objects(export, "latency") if one.get("batch") == 1), None)
        latency = math.nan if first is None else float(number(first, "ratio"))
    except MmpError:
        return None
    origin = export.get("origin")
    origin = origin if isinstance(origin, dict) else {}
    earlier = any(origin.get(file, digest) != digest for file, digest in digests.items())
    if first is None or earlier or not 0 < latency < math.inf:
        return None
    return Timing(path.parent.name, latency, *_quartiles(first, latency), _place(export))


def _quartiles(measured: Mapping[str, Any], latency: float) -> tuple[float, float]:
    match measured.get("quartiles"):
        case [int() | float() as lower, int() | float() as upper] if lower <= latency <= upper < math.inf:
            return float(lower), float(upper)
    return latency, latency


def _place(export: Mapping[str, Any]) -> str:
    try:
        threads = number(export, "threads")
        return f"{text(export, 'engine')}, {text(export, 'processor')}, {threads} thread{'' if threads == 1 else 's'}"
    except MmpError:
        return ""
