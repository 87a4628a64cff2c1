"""How many jobs of a sweep are done, for a sweep that is interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmp.runs.store import RunFolder
from mmp.sweeps.progress import stamps


@dataclass(frozen=True)
class Tally:
    """The jobs of a sweep.

    Attributes:
        total: Number of jobs.
        done: Number of jobs that have a result, from this sweep or from an earlier one.
        failed: Number of jobs that have failed in this sweep.
    """

    total: int
    done: int
    failed: int

    def __str__(self) -> str:
        """Return the numbers, such as ``12 of 30 jobs are done, 1 failed, 17 are left``."""
        failed = f", {self.failed} failed" if self.failed else ""
        left = self.total - self.done - self.failed
        return f"{self.done} of {self.total} jobs are done{failed}, {left} {'is' if left == 1 else 'are'} left"


def tally(
    folder: Path, jobs: Sequence[Sequence[str]], before: Mapping[Path, tuple[int, int]], force: bool = False
) -> Tally:
    """Count the jobs of a sweep by the status files in its folder.

    Args:
        folder: The sweep's folder.
        jobs: The overrides of each job.
        before: The :func:`mmp.sweeps.progress.stamps` at the start of the sweep.
        force: Whether the sweep repeats completed jobs, so that results of an earlier sweep do not count.
    """
    wanted = {tuple(job) for job in jobs}
    done, failed = set(), set()
    for run, stamp in stamps(folder):
        status = RunFolder(run).status or {}
        job, ours = tuple(status.get("overrides") or ()), before.get(run) != stamp
        if job not in wanted:
            continue
        if status.get("status") in ("completed", "skipped") and (ours or not force):
            done.add(job)
        elif status.get("status") == "failed" and ours:
            failed.add(job)
    return Tally(len(wanted), len(done), len(failed))
