"""Measured latencies of a run: those of its exported files, from their ``export.json``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmp.errors import MmpError
from mmp.files import read_json
from mmp.report.fields import number, objects
from mmp.runs.store import RESULT

log = logging.getLogger(__name__)

LATENCY = "latency"
EXPORTS = "export/*/export.json"  # in the folder of a run: an export of each target


def latencies_of(run: Path) -> dict[str, float]:
    """Return the latency of a run's files over the dense model's in the same engine, for one image, by target.

    An export has none if it was not timed, if it is of earlier weights of the run, or if it cannot be read.

    Args:
        run: The run's folder.
    """
    digests = (read_json(run / RESULT) or {}).get("digests")
    ratios = {path.parent.name: _ratio(read_json(path) or {}, digests) for path in sorted(run.glob(EXPORTS))}
    return {target: ratio for target, ratio in ratios.items() if ratio > 0}


def ratios_of(field: str, measured: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return what a condition compares: the latency of each run, by its folder. Runs without one are left out.

    Args:
        field: ``latency``, for each run's fastest export, or ``latency_onnx`` and so on, for the exports of one target.
        measured: The latency of each target, by the run's folder.

    Raises:
        MmpError: if no run has such a latency.
    """
    target = field.partition("_")[2]
    chosen = {folder: [r for name, r in found.items() if target in ("", name)] for folder, found in measured.items()}
    ratios = {folder: min(several) for folder, several in chosen.items() if several}
    way_out = f"measure it by mmp-export FOLDER target={target or 'onnx'} select=all"
    if not ratios:
        fields = ", ".join(sorted({f"{LATENCY}_{name}" for found in measured.values() for name in found}))
        raise MmpError(f"{field}: no run has this latency; {f'compare {fields}, or ' if fields else ''}{way_out}")
    if without := sorted(measured.keys() - ratios.keys()):
        which = f"{len(without)} of {len(measured)} runs, such as {without[0]}, have no {field} and are left out"
        log.warning("%s; %s", which, way_out)
    return ratios


def _ratio(export: Mapping[str, Any], digests: Any) -> float:
    """Return the ratio for one image, NaN if there is none."""
    origin, digests = ({} if not isinstance(one, dict) else one for one in (export.get("origin"), digests))
    if any(origin.get(file, digest) != digest for file, digest in digests.items()):
        return math.nan
    try:
        ratios = [number(one, "ratio") for one in objects(export, "latency") if number(one, "batch") == 1]
    except MmpError:
        return math.nan
    return float(ratios[0]) if ratios else math.nan
