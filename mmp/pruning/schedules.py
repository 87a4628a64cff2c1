"""Schedules: the fraction of the final sparsity at each epoch of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from mmp.errors import MmpError


class Schedule(Protocol):
    """The interface of schedules. Epochs count from 0."""

    @property
    def last_epoch(self) -> int:
        """The first epoch with the final sparsity."""

    def fraction(self, epoch: int) -> float:
        """Return the fraction of the final sparsity at an epoch, in [0, 1]; never decreasing, 1 from ``last_epoch``."""


@dataclass(frozen=True)
class OneShot:
    """The final sparsity at once.

    Attributes:
        epoch: The first epoch with the final sparsity.

    Raises:
        MmpError: if the epoch is negative.
    """

    epoch: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0:
            raise MmpError(f"schedule.epoch is {self.epoch}, but epochs count from 0")

    @property
    def last_epoch(self) -> int:
        """The first epoch with the final sparsity."""
        return self.epoch

    def fraction(self, epoch: int) -> float:
        """Return 0 before ``self.epoch``, 1 from it on."""
        return float(epoch >= self.epoch)


class Stepwise:
    """A list of epochs at which the fraction of the final sparsity rises to 1.

    Args:
        epochs: Epochs in strictly ascending order.
        fractions: The fraction from each epoch on, in ascending order in [0, 1], the last 1; equal steps if None.

    Raises:
        MmpError: on lists of different length or out of order, or a last fraction that is not 1.

    Example:
        >>> schedule = Stepwise([0, 2, 4])
        >>> [round(schedule.fraction(epoch), 2) for epoch in range(5)]
        [0.33, 0.33, 0.67, 0.67, 1.0]
    """

    def __init__(self, epochs: Sequence[int], fractions: Sequence[float] | None = None) -> None:
        self.epochs = list(epochs)
        n = len(self.epochs)
        self.fractions = list(fractions) if fractions is not None else [(i + 1) / n for i in range(n)]
        if not n or self.epochs != sorted(set(self.epochs)) or self.epochs[0] < 0:
            raise MmpError(f"schedule.epochs is {self.epochs}, but must rise strictly from an epoch >= 0")
        if len(self.fractions) != n:
            raise MmpError(f"schedule.fractions has {len(self.fractions)} entries for {n} epochs")
        rising = all(a <= b for a, b in pairwise([0.0, *self.fractions]))
        if not rising or self.fractions[-1] != 1.0:
            raise MmpError(f"schedule.fractions is {self.fractions}, but must rise from >= 0 and end at 1")

    @property
    def last_epoch(self) -> int:
        """The first epoch with the final sparsity."""
        return self.epochs[-1]

    def fraction(self, epoch: int) -> float:
        """Return the fraction of the latest listed epoch that is not after ``epoch``; 0 before the first."""
        return max((f for e, f in zip(self.epochs, self.fractions, strict=True) if e <= epoch), default=0.0)


@dataclass(frozen=True)
class Cubic:
    """The cubic ramp of Zhu and Gupta (2017, arXiv 1710.01878, section 2): steep at first, flat at the end.

    The fraction is 1 - (1 - t)^3 with t = (epoch - start + 1) / (end - start + 1).

    Attributes:
        start: Epoch of the first step.
        end: Epoch of the last step, to exactly 1.

    Raises:
        MmpError: unless 0 <= start <= end.

    Example:
        >>> schedule = Cubic(start=1, end=4)
        >>> [schedule.fraction(epoch) for epoch in range(6)]
        [0.0, 0.578125, 0.875, 0.984375, 1.0, 1.0]
    """

    start: int = 0
    end: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise MmpError(f"schedule: start {self.start} and end {self.end} must satisfy 0 <= start <= end")

    @property
    def last_epoch(self) -> int:
        """The first epoch with the final sparsity."""
        return self.end

    def fraction(self, epoch: int) -> float:
        """Return the ramp at ``epoch``: 0 before ``start``, 1 from ``end`` on."""
        if epoch < self.start:
            return 0.0
        t = min(1.0, (epoch - self.start + 1) / (self.end - self.start + 1))
        return 1.0 - (1.0 - t) ** 3
