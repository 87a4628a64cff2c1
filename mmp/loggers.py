"""Loggers that cannot harm a run: whatever a dashboard does, training goes on."""

from __future__ import annotations

import json
import logging
import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A file for dashboards that keep files, and show which were made from which.

    Attributes:
        name: Names its content: the same for all runs that share the file.
        kind: ``model``, ``scores`` or ``masks``.
        path: Where it lies; it must stay as it is.
        made: Whether the run has made it; else it was made from it.
        metadata: What the dashboard shows beside it.
    """

    name: str
    kind: str
    path: Path
    made: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)


class SafeLogger(Logger):
    """Passes everything on to another logger, and silences that one for good at its first failure.

    Args:
        make: Creates the inner logger; a failure to do so counts too.
        key: The logger's name in the configuration, for the warning.
    """

    def __init__(self, make: Callable[[], Logger], key: str) -> None:
        super().__init__()
        self._key = key
        self._inner: Any = make
        self._inner = self._attempt(lambda maker: maker())

    def _attempt(self, action: Callable[[Any], Any]) -> Any:
        if self._inner is None:
            return None
        try:
            return action(self._inner)
        except Exception as error:
            log.warning("logger %r failed and is silent from here on: %s: %s", self._key, type(error).__name__, error)
            self._inner = None
            return None

    @property
    def name(self) -> str | None:
        """Name of the inner logger's project, None once it has failed."""
        return self._attempt(lambda inner: inner.name)

    @property
    def version(self) -> int | str | None:
        """Version of the inner logger, None once it has failed."""
        return self._attempt(lambda inner: inner.version)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers of a step."""
        self._attempt(lambda inner: inner.log_metrics(metrics, step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log the configuration."""
        self._attempt(lambda inner: inner.log_hyperparams(params, *args, **kwargs))

    def log_artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """Tell loggers that keep files of those that a run was made from, or has made."""
        self._attempt(lambda inner: inner.log_artifacts(artifacts) if hasattr(inner, "log_artifacts") else None)

    def log_summary(self, summary: Mapping[str, Any], layers: Iterable[Mapping[str, Any]] = ()) -> None:
        """Log the end of a run; loggers that know only steps get its numbers as one more of them.

        Args:
            summary: Final numbers and names.
            layers: What ``result.json`` says of each layer.
        """

        def write(inner: Any) -> None:
            if hasattr(inner, "log_summary"):
                inner.log_summary(summary, layers)
            else:
                numbers = {f"final/{key}": value for key, value in summary.items() if isinstance(value, int | float)}
                inner.log_metrics(numbers)

        self._attempt(write)

    def save(self) -> None:
        """Flush."""
        self._attempt(lambda inner: inner.save())

    def finalize(self, status: str) -> None:
        """Flush at the end of a fit."""
        self._attempt(lambda inner: inner.finalize(status))

    def finish(self, exit_code: int) -> None:
        """Close the run for good; W&B learns whether it failed. Call in ``finally``."""

        def close(inner: Any) -> None:
            inner.save()
            if hasattr(inner.experiment, "finish"):
                inner.experiment.finish(exit_code=exit_code)

        self._attempt(close)


@contextmanager
def finishing(loggers: Iterable[SafeLogger]) -> Iterator[None]:
    """Close loggers when a ``with`` block ends, however it ends; W&B learns whether it failed."""
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        for logger in loggers:
            logger.finish(exit_code)


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
