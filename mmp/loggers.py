"""Loggers that cannot harm a run: whatever a dashboard does, training goes on."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from pytorch_lightning.loggers import Logger

log = logging.getLogger(__name__)


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

    def log_summary(self, summary: dict[str, Any]) -> None:
        """Log the final numbers of a run: into W&B's summary, as one more step of other loggers."""

        def write(inner: Any) -> None:
            experiment = inner.experiment
            if hasattr(experiment, "summary"):
                experiment.summary.update(summary)
            else:
                inner.log_metrics({f"final/{key}": value for key, value in summary.items()})

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
