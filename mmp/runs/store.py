"""The store: what a run leaves on disk. Imports no torch, for those who only look at runs."""

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
from importlib.metadata import version
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
LOGGERS = "loggers"  # the phase of a run that is no work


class Stopwatch:
    """Seconds spent in each phase of a run.

    Attributes:
        seconds: Of each phase.
        begun: Called with the name of a phase when it begins.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.on_begin: Callable[[str], None] | None = None
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of a ``with`` block to a phase."""
        if self.on_begin:
            self.on_begin(phase)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        """Return the seconds of every phase, and in total but for ``loggers``, where a server may be waited for."""
        total = time.perf_counter() - self._start - self.seconds.get(LOGGERS, 0.0)
        return {name: round(value, 4) for name, value in {**self.seconds, "total": total}.items()}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("mmp", "torch", "timm", "pytorch-lightning", "hydra-core")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@dataclass
class RunFolder:
    """The folder of one run: ``result.json`` once it is completed, and ``status.json`` of the last attempt.

    An attempt that fails or dies takes no result away.

    Attributes:
        path: The folder.
        head: What is known of the run before it starts; it opens both files.
    """

    path: Path
    head: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def progress(self) -> ProgressFile:
        """Where the run says what it is at."""
        return ProgressFile(self.path)

    @property
    def result(self) -> dict[str, Any] | None:
        """What ``result.json`` holds, or None if there is none that can be read."""
        return read_json(self.path / RESULT)

    @property
    def status(self) -> dict[str, Any] | None:
        """What ``status.json`` holds, or None if there is none that can be read."""
        return read_json(self.path / STATUS)

    def lock(self) -> AbstractContextManager[None]:
        """Have the folder for oneself in a ``with`` block: two processes that are told to do the same run take turns.

        Raises:
            OSError: if the folder cannot be written.
        """
        return locked(self.path / LOCK, str(self.path))

    def clean_up(self) -> None:
        """Remove what processes that died had begun to write; for whoever holds the lock."""
        for name in (RESULT, STATUS, MASKS, WEIGHTS, CONFIG):
            remove_unfinished(self.path / name)

    def alive(self) -> bool:
        """Return whether a process is at this run."""
        return is_locked(self.path / LOCK)

    def completed(self) -> bool:
        """Return whether this very run is there, completed and whole."""
        result = self.result or {}
        whole = result.get("files") and all(_size(self.path / name) == size for name, size in result["files"].items())
        return bool(whole) and all(result.get(key) == self.head.get(key) for key in self.origin)

    @property
    def origin(self) -> dict[str, Any]:
        """The settings and the data that a run comes from, as hashes."""
        return {key: self.head.get(key) for key in ("identity", "data_fingerprint")}

    def write_status(self, status: str, error: Mapping[str, str] | None = None) -> None:
        """Write ``status.json`` atomically: what this attempt is at, and in which process.

        Args:
            status: ``running``, ``completed``, ``failed`` or ``skipped``.
            error: Type, message and detail of a failure.
        """
        process = {"host": socket.gethostname(), "pid": os.getpid(), "slurm": job_id()}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"schema_version": SCHEMA_VERSION, "status": status, **self.head, "error": error}
        write_json(self.path / STATUS, {**content, "process": process, "time": now})

    def discard_result(self) -> None:
        """Forget an earlier result, whose files are about to be replaced."""
        (self.path / RESULT).unlink(missing_ok=True)

    def complete(self, files: Sequence[str], **content: Any) -> None:
        """Write ``result.json`` atomically; from now on the run is completed.

        Args:
            files: Names of what belongs to the result; sizes and checksums are kept, to know later whether they are
                whole, and those of this run.
            content: What it holds besides the head.
        """
        sizes = {name: _size(self.path / name) for name in files}
        digests = {name: file_digest(self.path / name) for name, size in sizes.items() if size is not None}
        head = {"schema_version": SCHEMA_VERSION, "status": "completed", **self.head}
        write_json(self.path / RESULT, {**head, **content, "files": sizes, "digests": digests})
        self.write_status("completed")

    def fail(self, error: BaseException, detail: str) -> None:
        """Record why an attempt failed.

        Args:
            error: What was raised.
            detail: One line for the user, or a traceback.
        """
        try:
            self.write_status("failed", {"type": type(error).__name__, "message": str(error), "detail": detail})
        except (MmpError, OSError) as lost:
            log.error("%s: the reason of the failure could not be written (%s)", self.path, lost)  # noqa: TRY400


def _size(path: Path) -> int | None:
    """Return the bytes of a file, None if there is none."""
    return path.stat().st_size if path.is_file() else None
