"""Memory of the process: its peak, and the freed memory that the C library keeps for reuse."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import resource
import sys
from pathlib import Path

from mmp.machine import usable_memory

log = logging.getLogger(__name__)


def reset_peak_memory() -> None:
    """Reset the peak memory of this process, on systems that support it (Linux)."""
    import torch  # not at the top: this module is imported before the command line is checked

    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        log.debug("the system cannot reset peak memory; it counts from the start of the process")


def peak_memory() -> dict[str, int]:
    """Return the peak memory of the process (``host``) and of the GPU (``cuda``) since :func:`reset_peak_memory`.

    Both are in bytes; ``cuda`` is 0 without a GPU.
    """
    import torch

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


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_KEPT = 2**30  # bytes of freed memory to keep
_LARGEST = 2**25  # bytes; larger blocks are always returned to the system, and glibc accepts no higher value
_SET_BY_HAND = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory, up to 1 GiB or an eighth of all, instead of returning it after each batch.

    The system would map and zero every page again, which costs a ResNet on a CPU a tenth of its time
    (``benchmarks/heap.py``). Malloc settings in the environment take precedence. Other C libraries are not changed.

    Returns:
        Whether the setting is in effect.
    """
    by_hand = any(key in os.environ for key in _SET_BY_HAND) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if by_hand or mallopt is None:
        return False
    kept = min(_KEPT, usable_memory() // 8)
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, kept))


def return_freed_memory() -> None:
    """Make glibc return all free memory to the system now, so that the process holds only what it uses."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
