"""Limits of the Linux control groups that this process is in: processor time and memory, versions 1 and 2.

Containers, Slurm, systemd and Kubernetes all set their limits there. A group's limit holds for the groups in it, so the
smallest one from the process's group up to the root counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")


class _Mount(NamedTuple):
    """A mounted hierarchy of groups.

    Attributes:
        group: The group that is mounted; in a container, often its own.
        folder: Where it is mounted.
        controllers: What the hierarchy controls; empty for version 2, whose one hierarchy controls everything.
    """

    group: str
    folder: str
    controllers: frozenset[str]


def processor_limit(root: Path = ROOT) -> float | None:
    """Return the number of cores whose time this process may use, such as 1.5; None without a limit.

    Args:
        root: The folder that ``proc`` and ``sys`` are in.
    """
    return _smallest("cpu", (_cores_of_version_2, _cores_of_version_1), root)


def memory_limit(root: Path = ROOT) -> int | None:
    """Return the number of bytes that the process's groups may use; None without a limit.

    Args:
        root: The folder that ``proc`` and ``sys`` are in.
    """
    limit = _smallest("memory", (_bytes_of_version_2, _bytes_of_version_1), root)
    return None if limit is None else int(limit)


def _smallest(controller: str, readers: tuple[Callable[[Path], list[float]], ...], root: Path) -> float | None:
    limits = [limit for folder in _groups(controller, root) for read in readers for limit in read(folder)]
    return min((limit for limit in limits if limit > 0), default=None)


def _cores_of_version_2(group: Path) -> list[float]:
    quota, _, period = _text(group / "cpu.max").partition(" ")
    return _quotient(quota, period)


def _cores_of_version_1(group: Path) -> list[float]:
    return _quotient(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))


def _quotient(quota: str, period: str) -> list[float]:
    return [share / whole for share in _numbers(quota) for whole in _numbers(period) if whole > 0]


def _bytes_of_version_2(group: Path) -> list[float]:
    return [*_numbers(_text(group / "memory.max")), *_numbers(_text(group / "memory.high"))]


def _bytes_of_version_1(group: Path) -> list[float]:
    return _numbers(_text(group / "memory.limit_in_bytes"))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the groups that a process is in, each with the groups around it as far as they are seen."""
    own = dict(_own_groups(_text(root / "proc/self/cgroup")))
    for mount in _mounts(_text(root / "proc/self/mountinfo")):
        key = controller if controller in mount.controllers else "" if not mount.controllers else None
        if key is None or key not in own:
            continue
        top = root / mount.folder.lstrip("/")
        folder = top / _below(own[key], mount.group)
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _own_groups(text: str) -> Iterator[tuple[str, str]]:
    """Yield the process's group under each controller of version 1, and under the empty name that of version 2."""
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, sign, group = rest.partition(":")
        if sign:
            yield from ((name, group) for name in controllers.split(","))


def _mounts(text: str) -> Iterator[_Mount]:
    for line in text.splitlines():
        place, _, kind = line.partition(" - ")
        fields, kinds = place.split(), kind.split()
        if len(fields) < 5 or not kinds or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        options = kinds[-1].split(",") if kinds[0] == "cgroup" else []
        group, folder = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
        yield _Mount(group, folder, frozenset(options))


def _below(group: str, mounted: str) -> PurePosixPath:
    """Return a group's path below the mounted one.

    A container may see its group under the host's name, or one that is outside of what is mounted. The mounted group
    is then its own or one around it.
    """
    path = PurePosixPath(group)
    if ".." in path.parts or not path.is_relative_to(mounted):
        return PurePosixPath()
    return path.relative_to(mounted)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # no such file, for instance in the root group
        return ""


def _numbers(text: str) -> list[float]:
    """Return the number that a file states, as a list; none for ``max`` and for files that are missing."""
    return [float(text)] if re.fullmatch(r"-?\d+", text) else []
