"""Latency: two models timed in alternation, so that other load on the machine affects both equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

FEWEST, MOST = 5, 101  # pairs of measurements


@dataclass(frozen=True)
class Latency:
    """The latency of a model and of the dense model on the same batch.

    Attributes:
        batch: Number of images.
        pairs: Number of measurements of each model.
        seconds: Median of the model.
        dense_seconds: Median of the dense model.
        ratio: Median over pairs of the model's time divided by the dense model's; below 1, the model is faster.
        quartiles: Lower and upper quartile of these ratios. If 1 is between them, no difference was seen.
    """

    batch: int
    pairs: int
    seconds: float
    dense_seconds: float
    ratio: float
    quartiles: tuple[float, float]


def compare_latency(
    model: Callable[[Tensor], object],
    dense: Callable[[Tensor], object],
    images: Tensor,
    budget: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time two models in alternation; which of them goes first changes from pair to pair.

    Args:
        model: The model to measure.
        dense: The dense model to compare it with.
        images: A batch (B, C, H, W).
        budget: Seconds to spend; at least `FEWEST` and at most `MOST` pairs are measured.
        clock: Returns seconds. ``time.process_time`` counts the processor time of all threads of this process.
    """
    end = time.perf_counter() + budget
    for warm_up in (model, dense):
        warm_up(images)
    pairs: list[tuple[float, float]] = []
    while len(pairs) < FEWEST or (len(pairs) < MOST and time.perf_counter() < end):
        order = (dense, model) if len(pairs) % 2 else (model, dense)
        seconds = {which: _timed(which, images, clock) for which in order}
        pairs.append((seconds[model], seconds[dense]))
    ratios = [ours / theirs for ours, theirs in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Latency(len(images), len(pairs), ours, theirs, middle, (low, high))


def _timed(model: Callable[[Tensor], object], images: Tensor, clock: Callable[[], float]) -> float:
    start = clock()
    model(images)
    return clock() - start
