"""The store: what a run leaves on disk, and the cache of dense models and scores that runs share."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.files import file_digest, is_locked, load_tensors, locked, remove_unfinished, save_tensors, write_json
from mmp.keep import satisfies
from mmp.layers import Layer
from mmp.masks import Masks
from mmp.notes import Notes
from mmp.patterns import UNSTRUCTURED, Pattern
from mmp.ranges import Range
from mmp.sizes import MEGABYTE, Sizes
from mmp.slurm import job_id

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
RESULT, STATUS, MASKS, WEIGHTS = "result.json", "status.json", "masks.safetensors", "model.safetensors"
CONFIG, LOCK = "config.yaml", ".lock"
LOGGERS = "loggers"  # the phase of a run that is no work


def cached_tensors(path: Path, compute: Callable[[], Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], bool]:
    """Read tensors from a cache file, or compute and write them, once for all processes that ask at once.

    Args:
        path: The file; its name must hold a hash of everything that decides its contents.
        compute: Makes the tensors.

    Returns:
        The tensors, and whether they came from the cache. A damaged file is thrown away and made again.
    """
    return cached_set({"": path}, "", lambda _: compute())


def cached_set(
    paths: Mapping[str, Path], wanted: str, compute: Callable[[str], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], bool]:
    """Do as :func:`cached_tensors` for one of several sets of tensors that are cheap to make together.

    If it is missing, all sets are computed and written, and no two are in memory at once.

    Args:
        paths: The file of each set, by name.
        wanted: The name of the set that is asked for.
        compute: Makes a set, by its name.

    Returns:
        The set, and whether it came from the cache.
    """
    path = paths[wanted]
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(Path(f"{min(paths.values())}.lock"), str(path)))
        except OSError as error:
            told = f"cannot write the cache {path.parent}: {error}; set paths.cache to another folder"
            raise MmpError(told) from error
        for file in paths.values():
            remove_unfinished(file)
        if path.is_file():
            try:
                return load_tensors(path), True
            except MmpError as error:
                log.warning("%s; computing it again", error)
                path.unlink()
        for name in paths:
            if name != wanted:
                save_tensors(paths[name], compute(name))
        tensors = {name: value.detach().cpu() for name, value in compute(wanted).items()}
        save_tensors(path, tensors)
        return tensors, False


class Stopwatch:
    """Seconds spent in each phase of a run.

    Attributes:
        seconds: Of each phase.
        begun: Called with the name of a phase when it begins.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.begun: Callable[[str], None] | None = None
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of a ``with`` block to a phase."""
        if self.begun:
            self.begun(phase)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        """Return the seconds of every phase, and in total but for ``loggers``, where a server may be waited for."""
        total = time.perf_counter() - self._start - self.seconds.get(LOGGERS, 0.0)
        return {name: round(value, 4) for name, value in {**self.seconds, "total": total}.items()}


def reset_peak_memory() -> None:
    """Start counting peak memory anew, where the system lets a process do so (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        log.debug("peak memory counts from the start of the process")


def peak_memory() -> dict[str, int]:
    """Return peak bytes of this process and, where there is one, of the GPU since :func:`reset_peak_memory`."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
    except OSError:
        match = None
    if match:
        host = int(match.group(1)) * 1024
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"host": host, "cuda": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("mmp", "torch", "timm", "pytorch-lightning", "hydra-core")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def describe(
    model: nn.Module,
    layers: Sequence[Layer],
    ranges: Mapping[str, Range],
    sparsities: Mapping[str, float],
    masks: Masks,
    sizes: Sizes,
    pattern: Pattern = UNSTRUCTURED,
) -> dict[str, Any]:
    """Return what ``result.json`` says of a model's sparsity: in all, over all parameters, and per layer.

    A layer's ``pattern`` is that which its mask satisfies, if there is one at all.
    """
    parameters = sum(p.numel() for p in model.parameters())
    gone, patterned = masks.pruned, pattern != UNSTRUCTURED
    return {
        "parameters": parameters,
        "prunable": masks.total,
        "sparsity": masks.sparsity,
        "sparsity_all": sum(gone.values()) / parameters,
        "bytes": {"dense": sizes.dense, "pruned": sizes.sparse(sum(gone.values()))},
        "masks_hash": masks.digest(),
        "layers": [
            {
                "name": layer.name,
                "role": layer.role,
                "stage": layer.stage,
                "depth": layer.depth,
                "lo": ranges[layer.name].lo,
                "hi": ranges[layer.name].hi,
                "sparsity": sparsities[layer.name],
                "pruned": gone[layer.name],
                "total": layer.size,
                "pattern": str(pattern) if patterned and satisfies(masks[layer.name], pattern, layer.groups) else None,
            }
            for layer in layers
        ],
    }


def summarise(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the final numbers that a dashboard compares runs by, and the names that it groups them by.

    Args:
        result: What ``result.json`` holds, its head included.
    """
    final = result["accuracy"]["finetuned"]
    per_layer = {f"sparsity/{layer['name']}": layer["pruned"] / layer["total"] for layer in result["layers"]}
    return {
        "sparsity": result["sparsity"],
        "sparsity_all": result["sparsity_all"],
        "accuracy": final["test"],
        "val_accuracy": final["validation"],
        "drop": result["drop"],
        "pruned_accuracy": result["accuracy"]["pruned"]["test"],
        "dense_accuracy": result["accuracy"]["dense"]["test"],
        "size_mb": result["bytes"]["pruned"] / MEGABYTE,
        "signal": result["criterion"] or result["signal"],
        **{key: result[key] for key in ("strategy", "model", "data", "seed")},
        **per_layer,
    }


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
    def notes(self) -> Notes:
        """Where the run says what it is at."""
        return Notes(self.path)

    @property
    def result(self) -> dict[str, Any] | None:
        """What ``result.json`` holds, or None if there is none that can be read."""
        return _read_json(self.path / RESULT)

    @property
    def status(self) -> dict[str, Any] | None:
        """What ``status.json`` holds, or None if there is none that can be read."""
        return _read_json(self.path / STATUS)

    def lock(self) -> AbstractContextManager[None]:
        """Have the folder for oneself in a ``with`` block: two processes that are told to do the same run take turns.

        Raises:
            OSError: if the folder cannot be written.
        """
        return locked(self.path / LOCK, str(self.path))

    def tidy(self) -> None:
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

    def say(self, status: str, error: Mapping[str, str] | None = None) -> None:
        """Write ``status.json`` atomically: what this attempt is at, and in which process.

        Args:
            status: ``running``, ``completed``, ``failed`` or ``skipped``.
            error: Type, message and detail of a failure.
        """
        process = {"host": socket.gethostname(), "pid": os.getpid(), "slurm": job_id()}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"schema_version": SCHEMA_VERSION, "status": status, **self.head, "error": error}
        write_json(self.path / STATUS, {**content, "process": process, "time": now})

    def discard(self) -> None:
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
        self.say("completed")

    def fail(self, error: BaseException, detail: str) -> None:
        """Record why an attempt failed.

        Args:
            error: What was raised.
            detail: One line for the user, or a traceback.
        """
        try:
            self.say("failed", {"type": type(error).__name__, "message": str(error), "detail": detail})
        except (MmpError, OSError) as lost:
            log.error("%s: the reason of the failure could not be written (%s)", self.path, lost)  # noqa: TRY400


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _size(path: Path) -> int | None:
    """Return the bytes of a file, None if there is none."""
    return path.stat().st_size if path.is_file() else None
