"""Whether standard output leads to the live display of a sweep."""

from __future__ import annotations

import os
import stat

PIPE = "MMP_DISPLAY"  # which pipe leads to a live region, for processes that write to it


def is_shown() -> bool:
    """Return whether what this process writes is printed above a live region."""
    try:
        return os.environ.get(PIPE) == pipe_name(1)
    except OSError:
        return False


def pipe_name(descriptor: int) -> str:
    found = os.fstat(descriptor)
    return f"{found.st_dev}:{found.st_ino}" if stat.S_ISFIFO(found.st_mode) else "no pipe"
