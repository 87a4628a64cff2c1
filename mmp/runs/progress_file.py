"""ProgressFile: where a run is, in a small file of its folder, for whoever looks on."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PROGRESS = "progress.json"
_PAUSE = 0.5  # seconds


class ProgressFile:
    """Writes where a run is: its phase at once, what changes within the phase at most twice a second.

    For the one process that holds the run's lock. A note that cannot be written is lost, and nothing else.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._temporary = folder / PROGRESS, folder / f".{PROGRESS}"
        self._content: dict[str, Any] = {}
        self._due = 0.0

    def begin(self, phase: str) -> None:
        """Note that a phase begins."""
        self._content = {"phase": phase}
        self._write()

    def add(self, **content: Any) -> None:
        """Note more of this phase.

        Args:
            content: ``epoch`` of ``epochs``, ``fraction`` of the training, ``accuracy`` on validation; plain data.
        """
        self._content |= content
        if time.monotonic() >= self._due:
            self._write()

    def remove(self) -> None:
        """Leave nothing behind."""
        for path in (self._path, self._temporary):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.debug("%s stays: %s", path, error)

    def _write(self) -> None:
        """Write the file anew: whoever reads finds all of a note, or for a moment none.

        Renamed over the old one, ext4 would write the file to the disk at once, which takes ten times as long.
        """
        self._due = time.monotonic() + _PAUSE
        try:
            self._temporary.write_text(json.dumps(self._content), encoding="utf-8")
            self._path.unlink(missing_ok=True)
            self._temporary.rename(self._path)
        except OSError as error:
            log.debug("a note is lost: %s", error)
