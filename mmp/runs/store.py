"""The files of a run's folder. Imports no torch, so that reports read runs without it."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmp.errors import MmpError
from mmp.files import file_digest, is_locked, locked, read_json, remove_unfinished, write_json
from mmp.runs.progress_file import ProgressFile
from mmp.runs.slurm import job_id

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
RESULT, STATUS, MASKS, WEIGHTS = "result.json", "status.json", "masks.safetensors", "model.safetensors"
CONFIG, LOCK = "config.yaml", ".lock"
JOINT_STATE = "joint.safetensors"  # among the checkpoints
LOGGERS = "loggers"  # time spent waiting for loggers; not counted in the total


class Stopwatch:
    """Measures the seconds spent in each phase of a run.

    Attributes:
        seconds: The seconds of each phase.
        begun: Called with the name of a phase when it begins.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.on_begin: Callable[[str], None] | None = None
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the duration of a ``with`` block to a phase."""
        if self.on_begin:
            self.on_begin(phase)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        """Return the seconds of every phase, and the ``total`` without the phase ``loggers``."""
        total = time.perf_counter() - self._start - self.seconds.get(LOGGERS, 0.0)
        return {name: round(value, 4) for name, value in {**self.seconds, "total": total}.items()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    packages = ("mmp", "torch", "timm", "pytorch-lightning", "hydra-core")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # mmp also runs from the folder of its source
        return "not installed"


@dataclass
class RunFolder:
    """The folder of one run: ``result.json`` of a completed run, and ``status.json`` of the last attempt.

    An attempt that fails or is killed does not remove an earlier result.

    Attributes:
        path: The folder.
        head: Names and settings that are known before the run starts; both files begin with them.
    """

    path: Path
    head: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def progress(self) -> ProgressFile:
        """The file with the run's progress."""
        return ProgressFile(self.path)

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of ``result.json``, or None if it is missing or damaged."""
        return read_json(self.path / RESULT)

    @property
    def status(self) -> dict[str, Any] | None:
        """The content of ``status.json``, or None if it is missing or damaged."""
        return read_json(self.path / STATUS)

    def lock(self) -> AbstractContextManager[None]:
        """Hold exclusive access to the folder in a ``with`` block; a second process with the same run waits.

        Raises:
            OSError: if the folder cannot be written.
        """
        return locked(self.path / LOCK, str(self.path))

    def clean_up(self) -> None:
        """Remove the unfinished files of processes that were killed. The caller must hold the lock."""
        for name in (RESULT, STATUS, MASKS, WEIGHTS, CONFIG):
            remove_unfinished(self.path / name)

    def alive(self) -> bool:
        """Return whether a process is working on this run."""
        return is_locked(self.path / LOCK)

    def completed(self) -> bool:
        """Return whether the folder holds a complete result of the same settings and data as in ``head``."""
        result = self.result or {}
        whole = result.get("files") and all(_size(self.path / name) == size for name, size in result["files"].items())
        return bool(whole) and all(result.get(key) == self.head.get(key) for key in self.origin)

    @property
    def origin(self) -> dict[str, Any]:
        """The hashes of the settings and of the data that a run is made from."""
        return {key: self.head.get(key) for key in ("identity", "data_fingerprint")}

    def write_status(self, status: str, error: Mapping[str, str] | None = None) -> None:
        """Write ``status.json`` atomically: the status of this attempt, and its process.

        Args:
            status: ``running``, ``completed``, ``failed`` or ``skipped``.
            error: Type, message and detail of a failure.
        """
        process = {"host": socket.gethostname(), "pid": os.getpid(), "slurm": job_id()}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"schema_version": SCHEMA_VERSION, "status": status, **self.head, "error": error}
        write_json(self.path / STATUS, {**content, "process": process, "time": now})

    def discard_result(self) -> None:
        """Remove an earlier ``result.json``, before the files that it describes are replaced."""
        (self.path / RESULT).unlink(missing_ok=True)

    def complete(self, files: Sequence[str], **content: Any) -> None:
        """Write ``result.json`` atomically, which makes the run completed.

        Args:
            files: Names of the files that belong to the result. Their sizes and checksums are stored, to detect later
                whether a file is truncated or belongs to another run.
            content: The content of ``result.json`` after the head.
        """
        sizes = {name: _size(self.path / name) for name in files}
        digests = {name: file_digest(self.path / name) for name, size in sizes.items() if size is not None}
        head = {"schema_version": SCHEMA_VERSION, "status": "completed", **self.head}
        write_json(self.path / RESULT, {**head, **content, "files": sizes, "digests": digests})
        self.write_status("completed")

    def fail(self, error: BaseException, detail: str) -> None:
        """Write a failed attempt to ``status.json``.

        Args:
            error: The exception that was raised.
            detail: One line for the user, or a traceback.
        """
        try:
            self.write_status("failed", {"type": type(error).__name__, "message": str(error), "detail": detail})
        except (MmpError, OSError) as unwritten:
            log.error("%s: the reason of the failure could not be written (%s)", self.path, unwritten)  # noqa: TRY400


def _size(path: Path) -> int | None:
    """Return the size of a file in bytes, None if it does not exist."""
    return path.stat().st_size if path.is_file() else None
