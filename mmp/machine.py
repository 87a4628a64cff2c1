"""What this process may use of its machine: cores and memory, which containers and clusters limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmp.cgroups import ROOT, processor_limit

CORES = "MMP_CORES"  # environment variable: cores for this process; the launcher of a sweep sets it for its workers


@dataclass(frozen=True)
class Cores:
    """The processor cores that a process may use.

    Attributes:
        usable: Their number, perhaps with a fraction, as a container may have 1.5.
        present: Cores of the machine.
        limit: What limits them, None if nothing does.
    """

    usable: float
    present: int
    limit: str | None = None

    @property
    def whole(self) -> int:
        """The number of whole cores, at least 1: as many threads can run without waiting for one another."""
        return max(1, int(self.usable))

    def describe(self) -> str:
        """Return a phrase such as ``1.5 of 16 cores may be used (cgroup)``."""
        reason = f" ({self.limit})" if self.limit else ""
        return f"{self.usable:g} of {self.present} core{'s' if self.present > 1 else ''} may be used{reason}"


def cores(root: Path = ROOT) -> Cores:
    """Return the cores that this process may use.

    The smallest limit counts: the machine, the processor affinity (``taskset``, cpusets), the quota of the control
    groups, the cores that Slurm has allocated to a task, ``LOKY_MAX_CPU_COUNT`` of joblib, and ``MMP_CORES``.

    Args:
        root: The folder that ``proc`` and ``sys`` are in.
    """
    present = os.cpu_count() or 1
    usable, limit = min(_core_limits(root), default=(float(present), None))
    return Cores(usable, present, limit) if usable < present else Cores(float(present), present)


def usable_cores() -> int:
    """Return the number of whole cores that this process may use, at least 1."""
    return cores().whole


def _core_limits(root: Path) -> Iterator[tuple[float, str]]:
    if hasattr(os, "sched_getaffinity"):
        yield float(len(os.sched_getaffinity(0))), "processor affinity"
    if (quota := processor_limit(root)) is not None:
        yield quota, "quota of the control group"
    for name in ("SLURM_CPUS_PER_TASK", "LOKY_MAX_CPU_COUNT", CORES):
        value = os.environ.get(name, "")
        if value.isdecimal() and int(value):
            yield float(value), name
