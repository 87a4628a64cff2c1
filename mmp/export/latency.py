"""Latency: two models timed in turns, so that whatever else the machine does meets both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

FEWEST, MOST = 5, 101


@dataclass(frozen=True)
class Latency:
    """Median seconds of two models on the same batch, and the ratio of one to the other.

    Attributes:
        batch: Number of images.
        pairs: How often each was timed.
        seconds: Of the model.
        dense_seconds: Of the dense model.
        ratio: Median over pairs of the model's time over the dense one's.
        quartiles: Of the same ratios: half of them lie between; where 1 does, too, there is no difference to see.
    """

    batch: int
    pairs: int
    seconds: float
    dense_seconds: float
    ratio: float
    quartiles: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "quartiles": list(self.quartiles)}


def compare_latency(
    model: Callable[[Tensor], object], dense: Callable[[Tensor], object], images: Tensor, budget: float
) -> Latency:
    """Time two models in turns, the first of each pair alternating.

    Args:
        model: What is of interest.
        dense: What it is compared with.
        images: A batch (B, C, H, W).
        budget: Seconds to spend; at least `FEWEST` and at most `MOST` pairs are measured.
    """
    end = time.perf_counter() + budget
    for warm_up in (model, dense):
        warm_up(images)
    pairs: list[tuple[float, float]] = []
    while len(pairs) < FEWEST or (len(pairs) < MOST and time.perf_counter() < end):
        order = (dense, model) if len(pairs) % 2 else (model, dense)
        seconds = {which: _timed(which, images) for which in order}
        pairs.append((seconds[model], seconds[dense]))
    ratios = [ours / theirs for ours, theirs in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Latency(len(images), len(pairs), ours, theirs, middle, (low, high))


def _timed(model: Callable[[Tensor], object], images: Tensor) -> float:
    start = time.perf_counter()
    model(images)
    return time.perf_counter() - start
