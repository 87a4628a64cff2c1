"""Shared by the benchmarks: functions timed in turns, and a table of medians, spreads, targets and verdicts."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from mmp.export.measure import processor
from mmp.markdown import table_of


@dataclass(frozen=True)
class Claim:
    """A figure with its target.

    Attributes:
        what: What is measured.
        values: One value per repetition.
        least: The least median that reaches the target.
        most: The largest median that reaches the target.
        note: Further information for the table.
    """

    what: str
    values: Sequence[float]
    least: float | None = None
    most: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        """Return the cells of a table row: what, target, median, spread, verdict, note."""
        middle = statistics.median(self.values)
        spread = f"{shown(min(self.values))} to {shown(max(self.values))}" if len(self.values) > 1 else ""
        target, holds = "", None
        if self.least is not None:
            target, holds = f"at least {shown(self.least)}", middle >= self.least
        if self.most is not None:
            target, holds = f"at most {shown(self.most)}", middle <= self.most
        verdict = "" if holds is None else "pass" if holds else "**miss**"
        return [self.what, target, shown(middle), spread, verdict, self.note]


def shown(value: float) -> str:
    """Return a number as text with three significant digits, or with all digits of its integer part."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(claims: Iterable[Claim]) -> str:
    """Return the table of the claims, followed by a line about the machine."""
    rows = [claim.cells() for claim in claims]
    return table_of(["what", "target", "median", "spread", "", ""], rows) + f"\n\n{machine()}"


def machine() -> str:
    """Return the processor, the GPU if there is one, the number of threads and the versions of torch and Python."""
    parts = [processor(), *([torch.cuda.get_device_name()] if torch.cuda.is_available() else [])]
    versions = [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    return ", ".join([*parts, f"threads: {torch.get_num_threads()}", *versions])


def in_turns(routes: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time functions in turns, so that other load on the machine affects all of them; each runs once untimed.

    Args:
        routes: The functions by name.
        repeats: Number of timed repetitions.

    Returns:
        The seconds of each repetition, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in routes}
    for repeat in range(-1, repeats):
        for name, route in routes.items():
            start = time.perf_counter()
            route()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratio of each pair of repetitions."""
    return [a / b for a, b in zip(over, under, strict=True)]
