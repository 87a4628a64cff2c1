"""What this process may use of its machine: cores and memory, which containers and clusters limit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmp.cgroups import ROOT, memory_limit, processor_limit
from mmp.errors import MmpError

# Environment variables: cores, and bytes of memory, for this process. A launcher sets them for its workers.
CORES, MEMORY = "MMP_CORES", "MMP_MEMORY"
_MIB = 2**20


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


@dataclass(frozen=True)
class Memory:
    """The memory that a process may use.

    Attributes:
        usable: Bytes.
        present: Bytes of the machine.
        limit: What limits them, None if nothing does.
    """

    usable: int
    present: int
    limit: str | None = None

    def describe(self) -> str:
        """Return a phrase such as ``4.3 of 67.4 GB may be used (limit of the control group)``."""
        if self.limit is None:
            return f"the machine has {self.present / 1e9:.4g} GB"
        return f"{self.usable / 1e9:.4g} of {self.present / 1e9:.4g} GB may be used ({self.limit})"


def cores(root: Path = ROOT) -> Cores:
    """Return the cores that this process may use.

    The smallest limit counts: the machine, the processor affinity (``taskset``, cpusets), the quota of the control
    groups, the cores that Slurm has allocated to a task, ``LOKY_MAX_CPU_COUNT`` of joblib, and ``MMP_CORES``.

    Args:
        root: The folder that ``proc`` and ``sys`` are in.

    Raises:
        MmpError: if ``MMP_CORES`` is not a positive number.
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
    for name in ("SLURM_CPUS_PER_TASK", "LOKY_MAX_CPU_COUNT"):
        if number := _number(name):
            yield float(number), name
    if (most := _setting(CORES, "cores, such as 4 or 1.5")) is not None:
        yield most, CORES


def memory(root: Path = ROOT) -> Memory:
    """Return the memory that this process may use.

    The smallest limit counts: the machine, the limits of the control groups, ``ulimit -v`` and ``ulimit -d``, what
    Slurm has allocated on the node, and ``MMP_MEMORY``. Other processes may use a part of it.

    Args:
        root: The folder that ``proc`` and ``sys`` are in.

    Raises:
        MmpError: if ``MMP_MEMORY`` is not a positive number.
    """
    # Windows has no sysconf; its memory is not known here, so nothing is limited.
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize
    usable, limit = min(_memory_limits(root), default=(present, None))
    return Memory(usable, present, limit) if usable < present else Memory(present, present)


def usable_memory() -> int:
    """Return the bytes of memory that this process may use."""
    return memory().usable


def _memory_limits(root: Path) -> Iterator[tuple[int, str]]:
    if (most := memory_limit(root)) is not None:
        yield most, "limit of the control group"
    if sys.platform != "win32":
        import resource

        for kind, name in ((resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d")):
            if (most := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
                yield most, name
    if megabytes := _number("SLURM_MEM_PER_NODE"):
        yield megabytes * _MIB, "SLURM_MEM_PER_NODE"
    if (megabytes := _number("SLURM_MEM_PER_CPU")) and (allocated := _number("SLURM_CPUS_ON_NODE")):
        yield megabytes * allocated * _MIB, "SLURM_MEM_PER_CPU"
    if (size := _setting(MEMORY, "bytes, such as 4e9")) is not None:
        yield max(1, int(size)), MEMORY


def _number(name: str) -> int:
    """Return the number in an environment variable of another program; 0 if there is none."""
    value = os.environ.get(name, "").strip()
    return int(value) if value.isdecimal() else 0


def _setting(name: str, unit: str) -> float | None:
    """Return the number in an environment variable of the user's; None if it is not set."""
    value = os.environ.get(name, "").strip()
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise MmpError(
            f"{name}={value}: must be a positive number of {unit}; correct the environment variable or unset it"
        )
    return number
