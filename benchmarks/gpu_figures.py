"""Values of ``python -m benchmarks.gpu``: parts, their setting, and the figures that they yield."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Claim

ROOT = Path(__file__).parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Setting:
    """Where and how the parts run.

    Attributes:
        data: Folder with ``gtsrb/GTSRB`` and ``cifar-10-batches-py``.
        work: Folder for runs and logs.
        dry: Whether every part is small, for a quick run on a CPU.
    """

    data: Path
    work: Path
    dry: bool


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Attributes:
        name: What is measured.
        value: The value; the median if there are several repetitions.
        unit: Its unit.
        low: Smallest value of several repetitions.
        high: Largest value of several repetitions.
        target: The target as text; empty without a target.
        holds: Whether the value reaches the target; None without a target.
        note: Further information for the table.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    target: str = ""
    holds: bool | None = None
    note: str = ""

    @classmethod
    def of(cls, claim: Claim, unit: str = "ratio") -> Figure:
        """Return a claim of another benchmark as a figure."""
        _, target, _, _, verdict, note = claim.cells()
        spread = (min(claim.values), max(claim.values)) if len(claim.values) > 1 else (None, None)
        holds = None if not verdict else verdict == "pass"
        return cls(claim.what, statistics.median(claim.values), unit, *spread, target, holds, note)


def exactly(name: str, value: float, wanted: float, unit: str, note: str = "") -> Figure:
    """Return a figure whose target is exactly the wanted value."""
    return Figure(name, value, unit, target=f"exactly {wanted:g}", holds=value == wanted, note=note)


def between(name: str, value: float, least: float, most: float, note: str = "") -> Figure:
    """Return a ratio whose target is a range."""
    return Figure(name, value, "ratio", target=f"{least:g} to {most:g}", holds=least <= value <= most, note=note)


@dataclass(frozen=True)
class Part:
    """One part of the measurements.

    Attributes:
        measure: Measures and yields figures.
        seconds: Time limit.
        gather: Reads figures from the part's files, also after the part crashed or was stopped.
        needs: A folder in the data folder; the part is skipped if it is missing.
        options: Further arguments of both functions.
    """

    measure: Callable[..., Iterable[Figure]]
    seconds: float
    gather: Callable[..., Iterable[Figure]] | None = None
    needs: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
