"""The metrics of one training, stored on disk and replayed to loggers."""

from __future__ import annotations

import json
import logging
import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)


class Recorder(Logger):
    """Stores the metrics of a training, across interruptions and from other processes.

    Args:
        path: The file, with one line per step. It is in the folder of the checkpoints and is removed with them.
        loggers: The loggers that get all metrics after the training; none if Lightning logs to them directly.
    """

    def __init__(self, path: Path, loggers: Sequence[Logger] = ()) -> None:
        super().__init__()
        self._path, self._loggers = path, list(loggers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loggers": []}  # loggers stay in the process that opened them

    @property
    def name(self) -> str | None:
        """None: the recorder has no name."""
        return None

    @property
    def version(self) -> int | str | None:
        """None: the recorder has no version."""
        return None

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the other loggers store the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the metrics of a step to the file."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "metrics": metrics}) + "\n")
        except OSError as error:
            log.warning("cannot write the metrics of step %s: %s", step, error)

    def replay(self) -> None:
        """Log all stored metrics to the loggers."""
        for entry in self._entries():
            for logger in self._loggers:
                logger.log_metrics(entry["metrics"], entry["step"])

    def history(self) -> list[dict[str, float | None]]:
        """Return the metrics of each epoch, such as ``val/accuracy``, with its number as ``epoch``.

        Values that are not finite become None, since JSON cannot express them.
        """
        epochs: dict[float, dict[str, float]] = {}
        for entry in self._entries():
            if "epoch" in entry["metrics"]:
                epochs.setdefault(entry["metrics"]["epoch"], {}).update(entry["metrics"])
        return [
            {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            for _, metrics in sorted(epochs.items())
        ]

    def _entries(self) -> list[dict[str, Any]]:
        """Return the logged entries; of those logged again after an interruption, only the last."""
        if not self._path.is_file():
            return []
        kept = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a process was killed while it wrote the line
                continue
            kept[entry["step"], *sorted(entry["metrics"])] = entry
        return list(kept.values())
