"""GPU slots: each job of a parallel sweep holds one, so that no GPU runs more jobs than the user allows."""

from __future__ import annotations

import getpass
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import CDLL
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

SLOTS = "MMP_GPU_SLOTS"  # environment variable; "0,0,1,1" is two jobs at a time on each of two GPUs
_used: list[str] = []  # the GPUs of the slots that this process has held; all are the same one


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them, without starting CUDA."""
    if not _has_driver():
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [name.strip() for name in named.split(",")][:count] if named else [str(index) for index in range(count)]


def _has_driver() -> bool:
    """Return whether a CUDA or ROCm driver is installed, without the seconds that importing torch takes."""
    try:
        CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


@contextmanager
def gpu_slot(folder: Path | None = None) -> Iterator[str | None]:
    """Hold a free GPU slot in a ``with`` block, with ``CUDA_VISIBLE_DEVICES`` set to its GPU.

    If all slots are taken, the process waits for one. Sweeps on the same machine share its slots. A process stays on
    the GPU of its first slot, since CUDA reads the variable once. It holds its slot for one job only, because there
    may be more processes than slots: a launcher with a single worker starts two processes, which take turns.

    Args:
        folder: The folder of the slots' locks; by default a temporary folder of this user on this machine.

    Yields:
        The GPU, or None if the launcher has not set ``MMP_GPU_SLOTS``.
    """
    slots = [slot for slot in os.environ.get(SLOTS, "").split(",") if slot]
    if not slots:
        yield None
        return
    lock, gpu = _acquire(slots, folder or Path(tempfile.gettempdir()) / f"mmp-gpus-{getpass.getuser()}")
    try:
        _used.append(gpu)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        yield gpu
    finally:
        try:
            if "torch" in sys.modules:
                sys.modules["torch"].cuda.empty_cache()  # memory for the job that takes the slot next
        except RuntimeError as error:  # after a CUDA error, every call fails in this process
            log.warning("the GPU memory of this job is not released: %s", error)
        finally:
            lock.release()


def _acquire(slots: Sequence[str], folder: Path) -> tuple[FileLock, str]:
    """Return the lock of a free slot, held by this process, and the slot's GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        for index, gpu in enumerate(slots):
            if _used and gpu != _used[-1]:
                continue
            lock = FileLock(folder / f"{gpu}-{slots[:index].count(gpu)}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return lock, gpu
        if not waited:
            log.info("all GPU slots (%s) are taken by other processes; waiting", os.environ[SLOTS])
            waited = True
        time.sleep(0.2)
