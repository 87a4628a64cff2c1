"""Atomic writes, locks that processes share, checksums and JSON. Imports no torch."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mmp.errors import MmpError, printable

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int, int]  # of a file: size in bytes, times of change of content and of status, inode


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock during a ``with`` block: one process at a time, on all hosts that share the file system.

    The operating system holds the lock, so it is released when its process ends, even if that process is killed.

    Args:
        path: The lock file. It is created if needed and not removed.
        what: Name of the locked resource, for the log line that says that this process waits.

    Raises:
        OSError: if the lock file cannot be created.
    """
    from filelock import FileLock, Timeout  # here, so that mmp.pruning works without it

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, poll_interval=0.2)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that uses %s", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def as_text(path: str | Path) -> str:
    r"""Return a path in one plain line: control characters and bytes that are not UTF-8 are escapes like ``\xe9``."""
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock. A lock file that cannot be opened counts as held."""
    from filelock import FileLock, Timeout

    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file beside ``path``, then rename it: readers see the old file or the new one, never a part.

    The content is flushed to disk before the rename, so this also holds after a power cut.

    Args:
        path: The file to write. Its folder is created if needed.
        write: Called with the path of the temporary file; writes the content there.

    Raises:
        MmpError: if the file cannot be written; the message names it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MmpError(f"cannot write {path}: {reason}") from error


def no_space(error: BaseException) -> bool:
    """Return whether an error comes from a full disk, or from the user's full quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, atomically.

    Raises:
        ValueError: if the content has a number that is not finite, which JSON cannot hold.
        MmpError: if the file cannot be written; the message names it.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def remove_unfinished(path: Path) -> None:
    """Remove temporary files of :func:`write_atomically` whose process died. No process may be writing ``path`` now."""
    for temporary in path.parent.glob(f".{path.name}.*{path.suffix}"):
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder in a ``with`` block; at its end, the temporary folder replaces ``path``.

    If the block raises, ``path`` stays as it was. Temporary folders of processes that died are removed. The caller must
    hold a lock on the parent folder.

    Yields:
        The temporary folder.

    Raises:
        MmpError: if the folder cannot be written; the message names it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
            fresh, old = Path(temporary) / "fresh", Path(temporary) / "old"
            fresh.mkdir()
            yield fresh
            if path.exists():
                path.rename(old)
            fresh.rename(path)
            _flush(path.parent)
    except OSError as error:
        raise MmpError(f"cannot write {path}: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if the file is missing, is not JSON, or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: str | Path) -> Stamp:
    """Return numbers that change with a file: another content, or another file in its place, has another stamp.

    The status of a file changes with its content, also if a program sets the time of its content back.

    Raises:
        OSError: if there is no such file.
    """
    status = os.stat(path)  # noqa: PTH116 - a Path takes three times as long
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
