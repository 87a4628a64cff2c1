"""GPU slots: each worker process of a parallel sweep takes one before CUDA starts, and keeps it as long as it lives."""

from __future__ import annotations

import getpass
import logging
import os
import tempfile
import time
from ctypes import CDLL
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

SLOTS = "MMP_GPU_SLOTS"  # "0,0,1,1": two jobs at a time on each of two GPUs
_leased: list[FileLock] = []  # of this process; the system takes it back when the process ends, however it ends


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them; CUDA is not started."""
    if not _has_driver():
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [name.strip() for name in named.split(",")][:count] if named else [str(index) for index in range(count)]


def _has_driver() -> bool:
    """Return whether CUDA or ROCm may find a GPU here: to ask them, torch must be imported, which takes seconds."""
    try:
        CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def lease_gpu(folder: Path | None = None) -> str | None:
    """Take a slot of those that the launcher offers, unless this process has one: the process sees its GPU alone.

    Two sweeps on one machine share its slots; whoever finds none waits.

    Args:
        folder: Where the slots' locks are; a folder of this machine by default.

    Returns:
        The GPU, None if the launcher offers no slots.
    """
    slots = [slot for slot in os.environ.get(SLOTS, "").split(",") if slot]
    if not slots or _leased:
        return os.environ.get("CUDA_VISIBLE_DEVICES") if _leased else None
    place = folder or Path(tempfile.gettempdir()) / f"mmp-gpus-{getpass.getuser()}"
    place.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        for index, gpu in enumerate(slots):
            lock = FileLock(place / f"{gpu}-{slots[:index].count(gpu)}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _leased.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return gpu
        if not waited:
            log.info("all GPU slots (%s) are taken by other processes; waiting", os.environ[SLOTS])
            waited = True
        time.sleep(1)
