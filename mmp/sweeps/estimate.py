"""An estimate of the time that a sweep will take, from what its jobs are and from the jobs that it has seen lately.

A job takes the time of its own phases, as other jobs of the same model, data and recipe do. The first job of a dense
model also trains it, the first job of a signal scores its weights, and the first job of a range table or of a search
finds the layers' sparsities. Other jobs wait for these results, or read them.
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
_SHORT = 0.1  # fraction of a job's own time up to which a phase that has not been seen before is ignored

_OVERLAYS = {"experiment", "debug"}  # can change every other setting
_OWN = _OVERLAYS | {"model", "data", "finetune", "trainer", "reconstruct", "schedule", "pattern"}
_DENSE = _OVERLAYS | {"model", "data", "dense", "trainer"}
# Phases whose results jobs share, in their order: the settings that decide what they cost. The seed decides the result.
_SHARED = {
    "dense": _DENSE,
    "scores": _DENSE | {"signal", "criterion", "pattern"},
    "ranges": _DENSE | {"ranges", "criterion", "pattern", "allocation"},
}
_BEFORE = ("", "data", "loggers")  # phases that shared ones may follow
_SEARCH = {"signal", "budget", "reconstruct"}  # decide the result of a search, too, but not what it costs
_ONE_PASS = {f"signal={name}" for name in ("magnitude", "gradient", "product")}  # are scored together


@dataclass(frozen=True)
class Seen:
    """A job that has started.

    Attributes:
        overrides: Its overrides.
        elapsed: Seconds that it took, or has taken so far.
        seconds: The seconds of each phase so far.
        latest: Of a running job, the content of ``progress.json``.
        epoch: Of a running job, the seconds of an epoch of its dense training, if it has been seen.
        cached: Of a completed job, the phases that read their result from the cache.
    """

    overrides: Overrides
    elapsed: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    latest: Mapping[str, Any] = field(default_factory=dict)
    epoch: float | None = None
    cached: frozenset[str] = frozenset()

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
    def coming(self) -> tuple[str, ...]:
        """The current phase of a running job and the later ones, without those that jobs do not share."""
        shared = tuple(_SHARED)
        if self.phase in shared:
            return shared[shared.index(self.phase) :]
        begun = max((index for index, phase in enumerate(shared, 1) if phase in self.seconds), default=0)
        return shared[begun:] if self.phase in _BEFORE else ()

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
    """An estimate of the seconds until a job, or all jobs, have ended.

    Attributes:
        seconds: The estimate.
        whole: Whether it counts everything. Otherwise some jobs, or phases of jobs, are of a kind that has not been
            seen, and the estimate is too low.
    """

    seconds: float
    whole: bool


_UNKNOWN = TimeLeft(0.0, False)


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
    if (left or coming) and not any(job.seconds or job.whole for job in (*left, *coming)):
        return None
    free = [job.seconds for job in left] + [0.0] * (workers - len(left))
    heapq.heapify(free)
    for job in coming:
        heapq.heapreplace(free, free[0] + job.seconds)
    return TimeLeft(max(free, default=0.0), all(job.whole for job in (*left, *coming)))


class _Costs:
    """What jobs cost, by their kind."""

    def __init__(self, completed: Sequence[Seen], running: Sequence[Seen]) -> None:
        self._own: dict[Key, list[float]] = defaultdict(list)
        self._shared: dict[Key, list[float]] = defaultdict(list)
        self._paid = {_result(job.overrides, phase) for job in (*completed, *running) for phase in _SHARED}
        self._made = {_result(job.overrides, phase) for job in completed for phase in _SHARED}
        first = set(self._paid)
        for job in completed:
            self._own[_of(job.overrides, _OWN)].append(job.own)
            for phase in _SHARED:
                key = _result(job.overrides, phase)
                if key in first and phase not in job.cached:
                    first.remove(key)
                    self._shared[_kind(job.overrides, phase)].append(job.seconds.get(phase, 0.0))
        for job in running:
            self._extrapolate(job)

    def _extrapolate(self, job: Seen) -> None:
        """Estimate kinds that no completed job has, from the epochs of a running training."""
        own, total = _of(job.overrides, _OWN), job.phase_total
        trained = total if job.phase == "dense" else job.seconds.get("dense") if job.epoch else None
        if trained is not None:
            self._shared.setdefault(_kind(job.overrides, "dense"), [trained])
        if job.phase == "finetune" and total is not None:
            self._own.setdefault(own, [total])
        elif job.epoch is not None and (epochs := job.latest.get("finetune_epochs")):
            self._own.setdefault(own, [job.epoch * epochs])

    def left(self, job: Seen) -> TimeLeft:
        """Return the seconds that a running job still takes."""
        own, total = self._own.get(_of(job.overrides, _OWN)), job.phase_total
        if own is None:
            return _UNKNOWN
        longer = [seconds for seconds in own if seconds > job.own]
        if not longer and job.phase == "finetune" and total is not None:
            return TimeLeft(total - job.in_phase, True)
        left = rest = _usual(longer) - job.own if longer else 0.0
        whole = True
        for phase in job.coming:
            now, seen = phase == job.phase, self._shared.get(_kind(job.overrides, phase))
            if now and phase == "dense" and total is not None:
                left += total - job.in_phase
            elif _result(job.overrides, phase) not in self._made:
                left += max(_usual(seen) - job.in_phase * now, 0.0) if seen else 0.0
                whole = whole and (bool(seen) or job.in_phase * now <= _SHORT * rest)
        return TimeLeft(left, whole)

    def of_waiting(self, waiting: Sequence[Overrides]) -> Iterator[TimeLeft]:
        """Yield the seconds of every waiting job."""
        paid = set(self._paid)
        for overrides in waiting:
            own = self._own.get(_of(overrides, _OWN))
            new = {_result(overrides, phase): self._shared.get(_kind(overrides, phase)) for phase in _SHARED}
            parts = [own, *(seen for result, seen in new.items() if result not in paid)]
            paid |= new.keys()
            known = sum(_usual(seen) for seen in parts if seen)
            yield TimeLeft(known, all(parts)) if own else _UNKNOWN


def _usual(seconds: Sequence[float]) -> float:
    """Return the usual one of the last measurements."""
    return statistics.median(seconds[-_LATELY:])


def _of(overrides: Overrides, settings: set[str]) -> Key:
    """Return the overrides of some settings."""
    return tuple(sorted(one for one in overrides if one.lstrip("+~").partition("=")[0].partition(".")[0] in settings))


def _kind(overrides: Overrides, phase: str) -> Key:
    """Return what decides the cost of a shared phase."""
    return phase, *(one for one in _of(overrides, _SHARED[phase]) if one not in _ONE_PASS)


def _result(overrides: Overrides, phase: str) -> Key:
    """Return what decides the result of a shared phase; only the first of the jobs that share it pays its cost."""
    searched = phase == "ranges" and bool(_of(overrides, {"allocation"}))
    return *_kind(overrides, phase), *_of(overrides, {"seed"} | (_SEARCH if searched else set()))
