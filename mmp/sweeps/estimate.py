"""An estimate of the time that a sweep will take, from what its jobs are and from the jobs that it has seen lately.

A job takes the time of its own phases, as other jobs of the same model, data and recipe do. The first job of a dense
model also trains it, and the first job of a signal scores its weights; other jobs wait for that or read it.
"""

from __future__ import annotations

import heapq
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Overrides = Sequence[str]
Key = tuple[str, ...]

_LATELY = 5  # jobs of a kind that its estimate is the median of; a machine may become slower
_LEAST = 0.02  # fraction of a training from which on it is extrapolated

_OWN = {"model", "data", "finetune", "trainer", "reconstruct", "schedule", "pattern"}
# Phases that jobs share: the settings on which they depend, besides the seed.
_SHARED = {
    "dense": {"model", "data", "dense", "trainer"},
    "scores": {"model", "data", "dense", "trainer", "signal", "criterion", "ranges", "pattern"},
}


@dataclass(frozen=True)
class Seen:
    """A job that has started.

    Attributes:
        overrides: Its overrides.
        elapsed: Seconds that it took, or has taken so far.
        seconds: The seconds of each phase so far.
        latest: Of a running job, the content of ``progress.json``.
        epoch: Of a running job, the seconds of an epoch of its dense training, if it has been seen.
    """

    overrides: Overrides
    elapsed: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    latest: Mapping[str, Any] = field(default_factory=dict)
    epoch: float | None = None

    @property
    def own(self) -> float:
        """Seconds without the phases that jobs share."""
        return self.elapsed - sum(self.seconds.get(phase, 0.0) for phase in _SHARED)

    @property
    def phase(self) -> str:
        """The phase of a running job."""
        return str(self.latest.get("phase", ""))

    @property
    def in_phase(self) -> float:
        """The seconds of a running job's phase so far."""
        return self.seconds.get(self.phase, 0.0)

    @property
    def phase_total(self) -> float | None:
        """Seconds of a running training from its beginning to its end, extrapolated; None if it has hardly begun."""
        return _whole(self.latest, self.in_phase)


def epoch_of(latest: Mapping[str, Any], seconds: float) -> float | None:
    """Return the seconds of an epoch, from the content of ``progress.json`` after some seconds of a training."""
    whole = _whole(latest, seconds)
    return None if whole is None else whole / latest["epochs"]


def _whole(latest: Mapping[str, Any], seconds: float) -> float | None:
    fraction = latest.get("fraction", 0.0)
    return seconds / fraction if fraction >= _LEAST else None


@dataclass(frozen=True)
class TimeLeft:
    """An estimate of the seconds until all jobs have ended.

    Attributes:
        seconds: The estimate.
        whole: Whether it counts all jobs. Otherwise some are of a kind that has not been seen, and it is too low.
    """

    seconds: float
    whole: bool


def time_left(
    completed: Sequence[Seen], running: Sequence[Seen], waiting: Sequence[Overrides], workers: int
) -> TimeLeft | None:
    """Estimate the time until all jobs have ended. Each waiting job starts on the next free worker.

    Args:
        completed: The completed jobs, in the order of their ends.
        running: The running jobs.
        waiting: The overrides of the jobs that have not started, in their order.
        workers: Number of jobs that run at once.

    Returns:
        The estimate; None if nothing is known about any job.
    """
    costs = _Costs(completed, running)
    left = [costs.left(job) for job in running]
    coming = list(costs.of_waiting(waiting))
    known = [seconds for seconds in (*left, *coming) if seconds is not None]
    if not known and (left or coming):
        return None
    free = [seconds or 0.0 for seconds in left] + [0.0] * (workers - len(left))
    heapq.heapify(free)
    for seconds in coming:
        heapq.heapreplace(free, free[0] + (seconds or 0.0))
    return TimeLeft(max(free, default=0.0), len(known) == len(left) + len(coming))


class _Costs:
    """What jobs cost, by their kind."""

    def __init__(self, completed: Sequence[Seen], running: Sequence[Seen]) -> None:
        self._own: dict[Key, list[float]] = defaultdict(list)
        self._shared: dict[tuple[str, Key], list[float]] = defaultdict(list)
        self._paid = {(phase, _seeded(job.overrides, phase)) for job in (*completed, *running) for phase in _SHARED}
        self._made = {(phase, _seeded(job.overrides, phase)) for job in completed for phase in _SHARED}
        first = set(self._paid)
        for job in completed:
            self._own[_kind(job.overrides, _OWN)].append(job.own)
            for phase in _SHARED:
                key = phase, _seeded(job.overrides, phase)
                if key in first:  # later jobs read the result
                    first.remove(key)
                    self._shared[phase, _kind(job.overrides, _SHARED[phase])].append(job.seconds.get(phase, 0.0))
        for job in running:
            self._extrapolate(job)

    def _extrapolate(self, job: Seen) -> None:
        """Estimate kinds that no completed job has, from the epochs of a running training."""
        own, total = _kind(job.overrides, _OWN), job.phase_total
        if job.phase == "dense" and total is not None:
            self._shared.setdefault(("dense", _kind(job.overrides, _SHARED["dense"])), [total])
        if job.phase == "finetune" and total is not None:
            self._own.setdefault(own, [total])
        elif job.epoch is not None and (epochs := job.latest.get("finetune_epochs")):
            self._own.setdefault(own, [job.epoch * epochs])

    def left(self, job: Seen) -> float | None:
        """Return the seconds that a running job still takes, None if unknown."""
        own, total = self._own.get(_kind(job.overrides, _OWN)), job.phase_total
        if own is None:
            return None
        shared = 0.0
        if job.phase == "dense" and total is not None:
            shared = total - job.in_phase
        elif job.phase in _SHARED and (job.phase, _seeded(job.overrides, job.phase)) not in self._made:
            seen = self._shared.get((job.phase, _kind(job.overrides, _SHARED[job.phase])))
            shared = max(_usual(seen) - job.in_phase, 0.0) if seen else 0.0
        longer = [seconds for seconds in own if seconds > job.own]
        if not longer and job.phase == "finetune" and total is not None:
            return total - job.in_phase
        return shared + (_usual(longer) - job.own if longer else 0.0)

    def of_waiting(self, waiting: Sequence[Overrides]) -> Iterator[float | None]:
        """Yield the seconds of every waiting job, None if unknown."""
        paid = set(self._paid)
        for overrides in waiting:
            parts = [self._own.get(_kind(overrides, _OWN))]
            for phase, settings in _SHARED.items():
                key = phase, _seeded(overrides, phase)
                if key not in paid:
                    paid.add(key)
                    unseen: list[float] | None = (
                        [] if phase == "scores" else None
                    )  # a score takes little of a job's time
                    parts.append(self._shared.get((phase, _kind(overrides, settings)), unseen))
            yield None if None in parts else sum(_usual(part) for part in parts if part)


def _usual(seconds: Sequence[float]) -> float:
    """Return the usual one of the last measurements."""
    return statistics.median(seconds[-_LATELY:])


def _kind(overrides: Overrides, settings: set[str]) -> Key:
    """Return the overrides of some settings."""
    return tuple(sorted(one for one in overrides if one.lstrip("+~").partition("=")[0].partition(".")[0] in settings))


def _seeded(overrides: Overrides, phase: str) -> Key:
    return _kind(overrides, _SHARED[phase] | {"seed"})
