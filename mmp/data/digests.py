"""Digests of files' contents, remembered: a file that is unchanged by size, times and inode is not read again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mmp.errors import MmpError
from mmp.files import as_text, locked, read_json, stamp_of, write_text
from mmp.machine import usable_cores

log = logging.getLogger(__name__)

# A file that changes twice within the resolution of its times looks unchanged. Thus, as in git's index, nothing is
# remembered of a file that changed less than this many nanoseconds before it was read.
TOO_RECENT = 2_000_000_000

_MOST_THREADS, _THREADS_PER_CORE = 16, 4  # they wait for files most of the time

Look = Callable[[str, bytes], Any]
_Stamp = list[int]  # that of mmp.files, as JSON keeps it


class Content(NamedTuple):
    """The content of a file.

    Attributes:
        digest: SHA-256 of the bytes.
        seen: What ``look`` returned: plain data that JSON can hold.
    """

    digest: str
    seen: Any = None


def contents(root: Path, names: Sequence[str], memory: Path | None, look: Look, version: str = "") -> list[Content]:
    """Return digests of files, and what a function sees in them.

    Args:
        root: A folder.
        names: The files, relative to the folder.
        memory: A folder for a JSON file that keeps the results of unchanged files; None reads all files. All files are
            read, too, if the JSON file is damaged or cannot be written.
        look: Called with the path and the bytes of a file; returns plain data. It may raise :class:`MmpError`; nothing
            is then remembered of this file.
        version: Version of ``look``. Results of another version are not used.

    Raises:
        MmpError: if a file cannot be read, or ``look`` refuses it. The message is about the first such file, and says
            how many there are.
    """
    if not names:
        return []
    store = None if memory is None else memory / f"{_name_of(root, names)}.json"
    stamps = _stamps(root, names)
    known = _known(store, version)
    found = _unchanged(stamps, known)
    if len(found) == len(stamps):
        return [found[name] for name in names]
    with _use_of(store) as usable:
        if usable:  # another process may have read the same files meanwhile
            known = _known(store, version)
            found = _unchanged(stamps, known)
        missing = [name for name in stamps if name not in found]
        log.info("reading %d new or changed images of %s", len(missing), root)
        before = time.time_ns()
        with ThreadPoolExecutor(min(_MOST_THREADS, _THREADS_PER_CORE * usable_cores())) as threads:
            read = dict(zip(missing, threads.map(lambda name: _read(root, name, look), missing), strict=True))
        fresh = {name: content for name, content in read.items() if isinstance(content, Content)}
        stable = {name: content for name, content in fresh.items() if _changed(stamps[name]) < before - TOO_RECENT}
        if usable and store is not None and stable:
            entries = {name: [stamps[name], *content] for name, content in stable.items()}
            _write(store, {"version": version, "files": {**known, **entries}})
    refused = [result for result in read.values() if isinstance(result, MmpError)]
    if refused:
        more = f" ({len(refused)} such files)" if len(refused) > 1 else ""
        raise MmpError(f"{refused[0]}{more}") from refused[0]
    found |= fresh
    return [found[name] for name in names]


def _name_of(root: Path, names: Sequence[str]) -> str:
    """Return a name for the folder that all files are in, such as a split: each has a JSON file of its own."""
    first, last = (Path(name).parent.parts[:1] for name in (min(names), max(names)))
    folder = root.resolve().joinpath(*(first if first == last else ()))
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


def _stamps(root: Path, names: Sequence[str]) -> dict[str, _Stamp]:
    """Return the stamp of every file, a list as in JSON."""
    folder = f"{root}{os.sep}"
    stamps = {}
    for name in names:
        try:
            stamps[name] = list(stamp_of(folder + name))
        except OSError as error:
            raise MmpError(
                f"{as_text(folder + name)}: no such image ({error.strerror}); the data set is incomplete, get it again"
            ) from error
    return stamps


def _changed(stamp: _Stamp) -> int:
    """Return when a file changed, in nanoseconds.

    Programs that unpack archives set the time of the content, perhaps into the future, but not the time of the status.
    """
    _, content, status, _ = stamp
    return status if os.name == "posix" else max(content, status)  # elsewhere, it is the time of creation


def _known(store: Path | None, version: str) -> dict[str, Any]:
    """Return the entries of a JSON file: for every name, its stamp, its digest and what was seen."""
    stored = (read_json(store) if store is not None else None) or {}
    files = stored.get("files")
    if stored.get("version") != version or not isinstance(files, dict):
        return {}
    return files if all(isinstance(entry, list) and len(entry) == 3 for entry in files.values()) else {}


def _unchanged(stamps: Mapping[str, _Stamp], known: Mapping[str, Any]) -> dict[str, Content]:
    return {
        name: Content(*known[name][1:]) for name, stamp in stamps.items() if name in known and known[name][0] == stamp
    }


@contextmanager
def _use_of(store: Path | None) -> Iterator[bool]:
    """Hold the lock of a JSON file. Yields whether there is one that can be locked."""
    with ExitStack() as stack:
        usable = store is not None
        if store is not None:
            try:
                stack.enter_context(locked(store.with_suffix(".lock"), f"the digests in {store}"))
            except OSError as error:
                log.warning("%s cannot be locked (%s): every run reads all images to identify them", store, error)
                usable = False
        yield usable


def _read(root: Path, name: str, look: Look) -> Content | MmpError:
    path = root / name
    try:
        content = path.read_bytes()
        return Content(hashlib.sha256(content).hexdigest(), look(str(path), content))
    except MmpError as error:
        return error
    except OSError as error:
        return MmpError(f"{as_text(path)}: cannot be read ({error.strerror or error}); replace the file or remove it")


def _write(store: Path, content: Mapping[str, Any]) -> None:
    try:
        write_text(store, json.dumps(content))
    except MmpError as error:
        log.warning("%s: every run reads all images to identify them", error)
