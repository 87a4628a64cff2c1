"""Whether the live display of a sweep shows the standard output of this process."""

from __future__ import annotations

import os
import stat

PIPE = "MMP_DISPLAY"  # environment variable: the name of the pipe that a live display reads
SHOWN = "shown_by_display"  # attribute of a log record whose message the live display has itself


def is_shown() -> bool:
    """Return whether a live display prints the standard output of this process."""
    try:
        return os.environ.get(PIPE) == pipe_name(1)
    except OSError:
        return False


def pipe_name(descriptor: int) -> str:
    """Return a name for the pipe behind a file descriptor, the same in every process; ``no pipe`` for other files."""
    found = os.fstat(descriptor)
    return f"{found.st_dev}:{found.st_ino}" if stat.S_ISFIFO(found.st_mode) else "no pipe"
