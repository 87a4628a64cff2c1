"""Schedules: how much of the final sparsity is in force at an epoch. Pure functions of the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from mmp.errors import MmpError


class Schedule(Protocol):
    """What the masking callback asks."""

    @property
    def last_epoch(self) -> int:
        """The epoch from which the final sparsity is in force."""

    def fraction(self, epoch: int) -> float:
        """Return the fraction of the final sparsity at ``epoch``: never falling, 1 from ``last_epoch`` on."""


@dataclass(frozen=True)
class OneShot:
    """Everything at once, at the start of ``epoch`` (0-based)."""

    epoch: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0:
            raise MmpError(f"schedule.epoch is {self.epoch}, but epochs count from 0")

    @property
    def last_epoch(self) -> int:
        """The epoch from which the final sparsity is in force."""
        return self.epoch

    def fraction(self, epoch: int) -> float:
        """Return 0 before the epoch, 1 from it on."""
        return float(epoch >= self.epoch)


class Stepwise:
    """A list of epochs with rising fractions of the final sparsity, the last of which is 1.

    Args:
        epochs: Strictly rising epochs, 0-based.
        fractions: Fractions in [0, 1] that never fall, one per epoch; by default equal steps.

    Raises:
        MmpError: on lists of different length, falling values, or a last fraction that is not 1.
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
        """The epoch from which the final sparsity is in force."""
        return self.epochs[-1]

    def fraction(self, epoch: int) -> float:
        """Return the fraction of the latest listed epoch that has come."""
        return max((f for e, f in zip(self.epochs, self.fractions, strict=True) if e <= epoch), default=0.0)


@dataclass(frozen=True)
class Cubic:
    """The cubic ramp of Zhu and Gupta (2017, arXiv 1710.01878, section 2): steep first, gentle at the end.

    The fraction is 1 - (1 - t)^3 with t = (epoch - start + 1) / (end - start + 1), so the first step is taken
    at ``start`` and the last, to exactly 1, at ``end``.
    """

    start: int = 0
    end: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise MmpError(f"schedule: start {self.start} and end {self.end} must satisfy 0 <= start <= end")

    @property
    def last_epoch(self) -> int:
        """The epoch from which the final sparsity is in force."""
        return self.end

    def fraction(self, epoch: int) -> float:
        """Return the point of the ramp at ``epoch``."""
        if epoch < self.start:
            return 0.0
        t = min(1.0, (epoch - self.start + 1) / (self.end - self.start + 1))
        return 1.0 - (1.0 - t) ** 3
