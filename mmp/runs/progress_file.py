"""``progress.json``: a small file in the folder of a run, which shows a sweep's display how far the run is."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PROGRESS = "progress.json"
_PAUSE = 0.5  # seconds between two writes


class ProgressFile:
    """Writes the progress of a run: a new phase at once, changes within a phase at most twice a second.

    Only the process that holds the run's lock may use it. A write that fails is skipped, and the run goes on.

    Args:
        folder: The run's folder.

    Attributes:
        always: Values that every phase has, for estimates of the time left; plain data.
    """

    def __init__(self, folder: Path) -> None:
        self.always: dict[str, Any] = {}
        self._path, self._temporary = folder / PROGRESS, folder / f".{PROGRESS}"
        self._content: dict[str, Any] = {}
        self._due = 0.0

    def begin(self, phase: str) -> None:
        """Write that a phase begins."""
        self._content = {"phase": phase, **self.always}
        self._write()

    def add(self, **content: Any) -> None:
        """Add values to the current phase.

        Args:
            content: ``epoch`` and ``epochs``, ``fraction`` of the training, ``accuracy`` on validation; plain data.
        """
        self._content |= content
        if time.monotonic() >= self._due:
            self._write()

    def remove(self) -> None:
        """Remove the file."""
        for path in (self._path, self._temporary):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.debug("cannot remove %s: %s", path, error)

    def _write(self) -> None:
        """Replace the file: a reader finds all of its content, or for a moment no file.

        The old file is removed first. Renaming over it would make ext4 flush the new one to disk, which takes ten times
        as long.
        """
        self._due = time.monotonic() + _PAUSE
        try:
            self._temporary.write_text(json.dumps(self._content), encoding="utf-8")
            self._path.unlink(missing_ok=True)
            self._temporary.rename(self._path)
        except OSError as error:
            log.debug("cannot write %s: %s", self._path, error)
