"""The progress of a sweep, read from the files in its folder: running and ended jobs, and an estimate of the time left.

With every launcher, a job writes its progress (``mmp.runs.progress_file``) and its status (``status.json``) to its own
folder. A file that has not changed is not read again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmp.files import read_json
from mmp.runs.progress_file import PROGRESS
from mmp.runs.store import STATUS, RunFolder
from mmp.sweeps.estimate import Seen, epoch_of, time_left

ENDED = ("completed", "skipped", "failed")
_PHASES = {"dense": "dense model", "finetune": "fine-tuning", "evaluate": "evaluation"}


@dataclass
class JobProgress:
    """The progress of a job that has started.

    Attributes:
        folder: The folder of its run.
        name: The name of its run.
        status: ``running``, ``completed``, ``skipped``, ``failed``, or at the end of the sweep ``interrupted``.
        since: The time at which it was first seen, by the clock of `Progress`.
        overrides: Its overrides.
        reason: Why it failed.
        result: The content of ``result.json``, of a completed job.
        latest: The last content of ``progress.json``, of a running job.
        seconds: The seconds that it was seen in each phase, of a running job.
        epoch: The seconds of an epoch of its dense training, of a running job that has seen some of it.
    """

    folder: Path
    name: str
    status: str
    since: float
    overrides: tuple[str, ...] = ()
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    latest: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    epoch: float | None = None

    def follow(self, latest: dict[str, Any], seconds: float) -> None:
        """Take new content of ``progress.json``, and count the seconds since the last one."""
        if name := self.latest.get("phase"):
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.latest = latest
        if latest.get("phase") == "dense":
            self.epoch = epoch_of(latest, self.seconds.get("dense", 0.0)) or self.epoch

    @property
    def phase(self) -> str:
        """The current phase of a running job, such as ``fine-tuning 2/10``."""
        name = str(self.latest.get("phase", "begins"))
        epochs = f" {self.latest['epoch']}/{self.latest['epochs']}" if "epochs" in self.latest else ""
        return _PHASES.get(name, name) + epochs

    @property
    def line(self) -> str:
        """The outcome of an ended job, in one line."""
        if self.status == "failed":
            return f"FAILED {self.name}: {self.reason}"
        accuracy = self.result.get("accuracy", {})
        reached = accuracy.get("finetuned", accuracy.get("dense", {})).get("test")
        pruned = (self.result.get("sparsity"), "sparsity {:.1%}")
        if "parameters_left" in self.result:  # without whole channels
            pruned = (self.result.get("sparsity_all"), "{:.1%} of the parameters removed")
        parts = [
            pruned,
            (reached, "test {:.2%}"),
            (self.result.get("drop"), "drop {:.2f} points"),
            (self.result.get("seconds", {}).get("total"), "{:.1f} s"),
        ]
        numbers = ", ".join(text.format(value) for value, text in parts if value is not None)
        return f"done {self.name}: {numbers.replace('%', ' %')}"


@dataclass(frozen=True)
class State:
    """The state of a sweep.

    Attributes:
        total: Number of its jobs, None if unknown.
        completed: Number of jobs that this sweep completed.
        skipped: Number of jobs that were completed before.
        failed: Number of failed jobs.
        running: The running jobs.
        start: The time at which the sweep started, by the clock of `Progress`.
        now: The time of this state.
        left: Estimate of the seconds left, None if nothing is known yet.
        whole: Whether the estimate counts all jobs. Otherwise there are jobs of a kind that has not been seen yet.
    """

    total: int | None
    completed: int
    skipped: int
    failed: int
    running: tuple[JobProgress, ...]
    start: float
    now: float
    left: float | None
    whole: bool = True

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.now - self.start

    @property
    def counts(self) -> str:
        """The number of jobs in each state, such as ``12 of 30 done (3 skipped), 1 failed, 2 running``."""
        done, of = self.completed + self.skipped, "" if self.total is None else f" of {self.total}"
        parts = [f"{done}{of} done" + (f" ({self.skipped} skipped)" if self.skipped else "")]
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{len(self.running)} running"] if self.running else []
        return ", ".join(parts)

    @property
    def line(self) -> str:
        """The counts and the time left: ``12 of 30 done (3 skipped), 1 failed, 2 running, about 4 min left``."""
        if self.total is None or self.completed + self.skipped + self.failed >= self.total:
            return self.counts
        if self.left is None or not (self.whole or self.left):
            left = "time left unknown"
        else:
            left = f"{'about' if self.whole else 'more than'} {rounded_time(self.left)} left"
        return f"{self.counts}, {left}"


class Progress:
    """Follows the jobs of a sweep.

    A run that is in the folder already counts only after a job of this sweep has updated it.

    Args:
        folder: The sweep's folder.
        jobs: The overrides of each job, None if unknown.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, folder: Path, jobs: Sequence[Sequence[str]] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._clock, self._start = folder, clock, clock()
        self._overrides = [tuple(job) for job in jobs or ()]
        self._total = None if jobs is None else len(jobs)
        self._updated = self._start
        self._ours = None if jobs is None else {tuple(job) for job in jobs}
        self._seen = dict(stamps(folder))
        self._jobs: dict[Any, JobProgress] = {}  # by overrides, since two jobs may have the same run
        self._at: dict[Path, JobProgress] = {}
        self._completed: list[Seen] = []
        self._workers = 1  # the largest number of jobs seen running at once

    def update(self) -> list[JobProgress]:
        """Read the files that have changed since the last call, and return the jobs that have ended since."""
        ended = []
        for folder, stamp in stamps(self._folder):
            if self._seen.get(folder) == stamp:
                continue
            self._seen[folder] = stamp
            if job := self._read(folder):
                ended.append(job)
        running, now = self._running(), self._clock()
        self._workers = max(self._workers, len(running))
        for job in running:
            job.follow(read_json(job.folder / PROGRESS) or job.latest, now - self._updated)
        self._updated = now
        return ended

    def _read(self, folder: Path) -> JobProgress | None:
        """Read the status of a run, and return its job if it has ended."""
        run = RunFolder(folder)
        content = run.status
        if content is None:
            return None
        overrides = content.get("overrides")
        if self._ours is not None and overrides and tuple(overrides) not in self._ours:
            return None  # a job of another sweep in the same folder
        key = tuple(overrides) if overrides else folder
        name = content.get("run_name", folder.name)
        fresh = JobProgress(folder, name, "running", self._clock(), tuple(overrides or ()))
        job = self._jobs.setdefault(key, fresh)
        before = self._at.get(folder, job)
        if before is not job and before.status == "running":
            before.status = "completed"  # the next job replaced its status before it was read
        self._at[folder], job.status = job, str(content.get("status"))
        if job.status == "failed":
            error = content.get("error") or {}
            parts = [part for part in (error.get("type"), error.get("message")) if part]
            job.reason = ": ".join(parts).partition("\n")[0]
        if job.status == "completed":
            job.result = run.result or {}
            if "total" in (seconds := job.result.get("seconds", {})):
                self._completed.append(Seen(job.overrides, seconds["total"], seconds, cached=cached_phases(job.result)))
        return job if job.status in ENDED else None

    def end(self) -> None:
        """Count the jobs that are still running as interrupted, at the end of the sweep."""
        for job in self._running():
            job.status = "interrupted"

    def _running(self) -> tuple[JobProgress, ...]:
        return tuple(job for job in self._jobs.values() if job.status == "running")

    @property
    def state(self) -> State:
        """The state of the sweep at the last update."""
        now, running = self._clock(), self._running()
        count = {status: sum(job.status == status for job in self._jobs.values()) for status in ENDED}
        left = time_left(
            self._completed,
            [Seen(job.overrides, now - job.since, job.seconds, job.latest, job.epoch) for job in running],
            [overrides for overrides in self._overrides if overrides not in self._jobs],
            self._workers,
        )
        return State(
            total=self._total,
            **count,
            running=running,
            start=self._start,
            now=now,
            left=None if left is None else left.seconds,
            whole=left is None or left.whole,
        )


def cached_phases(result: Mapping[str, Any]) -> frozenset[str]:
    """Return the phases that read their result from the cache, from the content of ``result.json``."""
    found = {"dense": result.get("dense_cached"), "scores": (result.get("scores") or {}).get("cached")}
    return frozenset(phase for phase, cached in found.items() if cached)


def rounded_time(seconds: float) -> str:
    """Return a duration as text, rounded: ``40 s``, ``4 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def stamps(folder: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Yield the run folders below a folder, each with a stamp that changes when its status is written again."""
    try:
        entries = [e for e in os.scandir(folder) if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for entry in entries:
        try:
            found = os.stat(f"{entry.path}/{STATUS}")  # noqa: PTH116 (faster, for a thousand files twice a second)
        except OSError:
            yield from stamps(Path(entry.path))
            continue
        yield Path(entry.path), (found.st_mtime_ns, found.st_ino)
