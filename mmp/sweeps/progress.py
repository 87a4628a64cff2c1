"""The progress of a sweep, from the files of its folder alone: what runs, what has ended, how much time is left.

Whatever launcher runs the jobs, each of them says in its own folder where it is (``mmp.runs.progress_file``) and how it
ended (``status.json``). Nothing is read twice that has not changed.
"""

from __future__ import annotations

import heapq
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmp.files import read_json
from mmp.runs.progress_file import PROGRESS
from mmp.runs.store import STATUS, RunFolder

ENDED = ("completed", "skipped", "failed")
_PHASES = {"dense": "dense model", "finetune": "fine-tuning", "evaluate": "evaluation"}


@dataclass
class JobProgress:
    """A job of a sweep that has begun.

    Attributes:
        folder: Of its run.
        name: Of its run.
        status: ``running``, ``completed``, ``skipped`` or ``failed``.
        since: When it was first seen, by the progress's clock.
        reason: Why it failed.
        result: What a completed one has in ``result.json``.
        note: What a running one has noted last.
    """

    folder: Path
    name: str
    status: str
    since: float
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    note: dict[str, Any] = field(default_factory=dict)

    @property
    def phase(self) -> str:
        """What a running job is at, such as ``fine-tuning 2/10``."""
        name = str(self.note.get("phase", "begins"))
        epochs = f" {self.note['epoch']}/{self.note['epochs']}" if "epochs" in self.note else ""
        return _PHASES.get(name, name) + epochs

    @property
    def line(self) -> str:
        """How it has ended, in one line."""
        if self.status == "failed":
            return f"FAILED {self.name}: {self.reason}"
        accuracy = self.result.get("accuracy", {})
        reached = accuracy.get("finetuned", accuracy.get("dense", {})).get("test")
        parts = [
            (self.result.get("sparsity"), "sparsity {:.1%}"),
            (reached, "test {:.2%}"),
            (self.result.get("drop"), "drop {:.2f} points"),
            (self.result.get("seconds", {}).get("total"), "{:.1f} s"),
        ]
        told = ", ".join(text.format(value) for value, text in parts if value is not None)
        return f"done {self.name}: {told.replace('%', ' %')}"


@dataclass(frozen=True)
class State:
    """Where a sweep is.

    Attributes:
        total: Number of its jobs, None if it is not known.
        completed: How many were completed by it.
        skipped: How many had been completed before.
        failed: How many failed.
        running: Those under way.
        start: When it began, by the progress's clock.
        now: When this was.
        left: Seconds that it will still take, None if there is nothing to tell it by.
    """

    total: int | None
    completed: int
    skipped: int
    failed: int
    running: tuple[JobProgress, ...]
    start: float
    now: float
    left: float | None

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return self.now - self.start

    @property
    def counts(self) -> str:
        """How many jobs are where, such as ``12 of 30 done (3 skipped), 1 failed, 2 running``."""
        done, of = self.completed + self.skipped, "" if self.total is None else f" of {self.total}"
        parts = [f"{done}{of} done" + (f" ({self.skipped} skipped)" if self.skipped else "")]
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{len(self.running)} running"] if self.running else []
        return ", ".join(parts)

    @property
    def line(self) -> str:
        """All of it, such as ``12 of 30 done (3 skipped), 1 failed, 2 running, about 4 min left``."""
        if self.total is None or self.completed + self.skipped + self.failed >= self.total:
            return self.counts
        left = "time left unknown" if self.left is None else f"about {rounded_time(self.left)} left"
        return f"{self.counts}, {left}"


class Progress:
    """Follows the jobs of a sweep.

    What its folder holds already counts only when a job of this sweep comes to it.

    Args:
        folder: The sweep's folder.
        jobs: The overrides of each job, None if they are not known.
        clock: Seconds.
    """

    def __init__(
        self, folder: Path, jobs: Sequence[Sequence[str]] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._clock, self._start = folder, clock, clock()
        self._total = None if jobs is None else len(jobs)
        self._ours = None if jobs is None else {tuple(job) for job in jobs}
        self._seen = dict(_stamps(folder))
        self._jobs: dict[Any, JobProgress] = {}  # by overrides: two jobs may come to the same run
        self._at: dict[Path, JobProgress] = {}
        self._workers = 1  # the most jobs that were seen running at once

    def look(self) -> list[JobProgress]:
        """Read what has changed since the last look, and return the jobs that have ended since."""
        ended = []
        for folder, stamp in _stamps(self._folder):
            if self._seen.get(folder) == stamp:
                continue
            self._seen[folder] = stamp
            if job := self._read(folder):
                ended.append(job)
        running = self._running()
        self._workers = max(self._workers, len(running))
        for job in running:
            job.note = read_json(job.folder / PROGRESS) or job.note
        return ended

    def _read(self, folder: Path) -> JobProgress | None:
        """Read how a run stands, and return its job if that has ended."""
        run = RunFolder(folder)
        content = run.status
        if content is None:
            return None
        overrides = content.get("overrides")
        if self._ours is not None and overrides and tuple(overrides) not in self._ours:
            return None  # of another sweep that fills the same folder
        key = tuple(overrides) if overrides else folder
        job = self._jobs.setdefault(
            key, JobProgress(folder, content.get("run_name", folder.name), "running", self._clock())
        )
        before = self._at.get(folder, job)
        if before is not job and before.status == "running":
            before.status = "completed"  # the next job wrote over its end before anybody looked
        self._at[folder], job.status = job, str(content.get("status"))
        if job.status == "failed":
            error = content.get("error") or {}
            told = [part for part in (error.get("type"), error.get("message")) if part]
            job.reason = ": ".join(told).partition("\n")[0]
        if job.status == "completed":
            job.result = run.result or {}
        return job if job.status in ENDED else None

    def _running(self) -> tuple[JobProgress, ...]:
        return tuple(job for job in self._jobs.values() if job.status == "running")

    @property
    def state(self) -> State:
        """Where the sweep is, by the last look."""
        now, running = self._clock(), self._running()
        count = {status: sum(job.status == status for job in self._jobs.values()) for status in ENDED}
        seconds = [job.result.get("seconds", {}).get("total") for job in self._jobs.values() if job.result]
        waiting = (self._total or 0) - sum(count.values()) - len(running)
        return State(
            total=self._total,
            **count,
            running=running,
            start=self._start,
            now=now,
            left=time_left(
                [value for value in seconds if value is not None],
                [now - job.since for job in running],
                max(waiting, 0),
                self._workers,
            ),
        )


def time_left(completed: Sequence[float], running: Sequence[float], waiting: int, workers: int) -> float | None:
    """Estimate how long jobs will take: each as long as the completed did (median), on the next free worker.

    A job that runs already is compared to the completed ones that took longer than it has so far.

    Args:
        completed: Seconds that each completed job took; failed and skipped ones tell nothing.
        running: Seconds that each running job has taken so far.
        waiting: Number of jobs that have not begun.
        workers: How many jobs run at once.

    Returns:
        Seconds, None if no job is completed.
    """
    if not completed:
        return None
    usual = statistics.median(completed)
    free = [statistics.median([c for c in completed if c > so_far] or [so_far]) - so_far for so_far in running]
    free += [0.0] * (workers - len(free))
    heapq.heapify(free)
    for _ in range(waiting):
        heapq.heapreplace(free, free[0] + usual)
    return max(free)


def rounded_time(seconds: float) -> str:
    """Return a time as people say it: ``40 s``, ``4 min``, ``2 h 10 min``; no more digits than an estimate has."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _stamps(folder: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Yield the run folders below a folder, each with what tells whether its status was written anew."""
    try:
        entries = [e for e in os.scandir(folder) if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for entry in entries:
        try:
            found = os.stat(f"{entry.path}/{STATUS}")  # noqa: PTH116 (a thousand of them, twice a second)
        except OSError:
            yield from _stamps(Path(entry.path))
            continue
        yield Path(entry.path), (found.st_mtime_ns, found.st_ino)
