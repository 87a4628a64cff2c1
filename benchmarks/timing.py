"""What benchmarks have in common: routes timed in turns, and a table of targets, medians, spreads, and pass or miss."""

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
        values: One for each repetition.
        least: What the median must reach.
        most: What it must not exceed.
        note: What else to know.
    """

    what: str
    values: Sequence[float]
    least: float | None = None
    most: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        """Return a row: what, target, median, spread, verdict, note."""
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
    """Return a number as people read it: three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(claims: Iterable[Claim]) -> str:
    """Return the table of claims, and below it the machine."""
    rows = [claim.cells() for claim in claims]
    return table_of(["what", "target", "median", "spread", "", ""], rows) + f"\n\n{machine()}"


def machine() -> str:
    """Return what this was measured on."""
    parts = [processor(), *([torch.cuda.get_device_name()] if torch.cuda.is_available() else [])]
    versions = [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    return ", ".join([*parts, f"threads: {torch.get_num_threads()}", *versions])


def in_turns(routes: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time routes in turns, so that whatever else the machine does meets all of them; each runs once before.

    Args:
        routes: What to time, by name.
        repeats: How often.

    Returns:
        Seconds of each repetition of each route.
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
    """Return the ratio of each turn."""
    return [a / b for a, b in zip(over, under, strict=True)]
