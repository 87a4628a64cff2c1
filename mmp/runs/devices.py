"""GPU slots: each worker process of a parallel sweep claims one before CUDA starts, and holds it until it ends."""

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

SLOTS = "MMP_GPU_SLOTS"  # environment variable; "0,0,1,1" is two jobs at a time on each of two GPUs
_leased: list[FileLock] = []  # the lock of this process; the system releases it when the process ends


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


def lease_gpu(folder: Path | None = None) -> str | None:
    """Claim a free GPU slot for this process (once) and set ``CUDA_VISIBLE_DEVICES`` to that GPU.

    Sweeps on the same machine share its slots. If all are taken, the process waits for one.

    Args:
        folder: The folder of the slots' locks; by default a temporary folder of this user on this machine.

    Returns:
        The GPU, or None if the launcher has not set ``MMP_GPU_SLOTS``.
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
