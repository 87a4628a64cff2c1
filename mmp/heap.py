"""The heap of the C library: what one batch frees, the next one takes again."""

from __future__ import annotations

import ctypes
import os

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
