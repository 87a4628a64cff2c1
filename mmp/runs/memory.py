"""Memory of the process: its peak, and freed memory that the C library keeps for the next batch."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import resource
import sys
from pathlib import Path

log = logging.getLogger(__name__)


def reset_peak_memory() -> None:
    """Start counting peak memory anew, where the system lets a process do so (Linux)."""
    import torch  # this module is imported before a command line is checked

    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        log.debug("peak memory counts from the start of the process")


def peak_memory() -> dict[str, int]:
    """Return peak bytes of this process and, where there is one, of the GPU since :func:`reset_peak_memory`."""
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


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT = 2**30  # bytes that are kept when they are free
_LARGEST = 2**25  # bytes of one block beyond which it is returned nevertheless; glibc takes no more
_SET_BY_HAND = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Have glibc keep up to 1 GiB of freed memory, rather than return it after each batch.

    The system would hand it out again page by page, zeroed, which costs a ResNet on a CPU a tenth of its time
    (``benchmarks/heap.py``). What the environment says of the heap wins, and other C libraries are left alone.

    Returns:
        Whether the heap does so from now on.
    """
    by_hand = any(key in os.environ for key in _SET_BY_HAND) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if by_hand or mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))


def return_freed_memory() -> None:
    """Have glibc return what is free now, so that the process holds no more than it uses."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
