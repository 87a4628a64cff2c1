"""Control groups: files in the form of the kernel's, and a real group where root may make one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest


def kernel_files(root: Path, groups: str, mounts: str, files: Mapping[str, str]) -> Path:
    """Write ``/proc/self/cgroup``, ``/proc/self/mountinfo`` and files below ``/sys/fs/cgroup`` into a folder."""
    texts = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    for name, text in {**texts, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@contextmanager
def real_group(controller: str, limits: Mapping[str, str], nested: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Make a control group, perhaps with another in it, and yield the file that processes are moved to it with.

    Args:
        controller: ``cpu`` or ``memory``.
        limits: Contents of the group's files, by the names of version 1 or 2; files of the other version are left out.
        nested: The same for the group in it.
    """
    top = _folder(controller)
    group = top / f"mmp-test-{os.getpid()}"
    made = []
    try:
        for folder, contents in ((group, limits), (group / "nested", nested)):
            if contents is None:
                continue
            try:
                folder.mkdir()
                made.append(folder)
                for name, content in contents.items():
                    if (folder / name).exists():
                        (folder / name).write_text(content)
            except OSError as error:
                pytest.skip(f"control groups cannot be made here ({error})")
        yield made[-1] / "cgroup.procs"
    finally:
        for folder in reversed(made):
            folder.rmdir()


def _folder(controller: str) -> Path:
    """Return the folder of the hierarchy that limits a controller."""
    mounts = Path("/proc/self/mountinfo")
    text = mounts.read_text() if mounts.exists() else ""
    for kind, pattern in (("1", rf" (\S+) [^\n]* - cgroup [^\n]*\b{controller}\b"), ("2", r" (\S+) \S+ - cgroup2 ")):
        for match in re.finditer(rf"^\d+ \d+ \S+ /{pattern}", text, re.MULTILINE):
            top = Path(match[1])
            if kind == "1" or controller in (top / "cgroup.subtree_control").read_text().split():
                return top
    pytest.skip(f"no control groups that limit {controller} are mounted here")
