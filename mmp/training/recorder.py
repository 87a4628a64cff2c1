"""The metrics of one training, kept on disk and replayed to loggers."""

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
    """Keeps the metrics of a training, over interruptions and from other processes.

    Args:
        path: Where the process that trains writes, a line a step; below the checkpoints, with which it goes.
        loggers: What hears them when the training is over; none if they hear it as it goes.
    """

    def __init__(self, path: Path, loggers: Sequence[Logger] = ()) -> None:
        super().__init__()
        self._path, self._loggers = path, list(loggers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loggers": []}  # they stay in the process that has opened them

    @property
    def name(self) -> str | None:
        """No name."""
        return None

    @property
    def version(self) -> int | str | None:
        """No version."""
        return None

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Leave the configuration to the loggers."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep the numbers of a step."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "metrics": metrics}) + "\n")
        except OSError as error:
            log.warning("metrics of step %s are lost: %s", step, error)

    def replay(self) -> None:
        """Pass everything on to the loggers."""
        for entry in self._entries():
            for logger in self._loggers:
                logger.log_metrics(entry["metrics"], entry["step"])

    def history(self) -> list[dict[str, float | None]]:
        """Return the metrics of each epoch, as ``val/accuracy`` and the like, with its number as ``epoch``.

        What is not finite is None: JSON has no word for it.
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
        """Return what was logged; what an attempt that was interrupted has logged before counts once."""
        if not self._path.is_file():
            return []
        kept = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a process died while it wrote
                continue
            kept[entry["step"], *sorted(entry["metrics"])] = entry
        return list(kept.values())
