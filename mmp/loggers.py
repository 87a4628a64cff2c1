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
        make: Creates the inner logger; its failure counts too.
        key: The logger's name in the configuration, for the warning.
    """

    def __init__(self, make: Callable[[], Logger], key: str) -> None:
        super().__init__()
        self._key = key
        self._inner: Logger | None = None
        self._inner = self._attempt(make)

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # noqa: BLE001  (the point of this class)
            log.warning("logger %r failed and is silent from here on: %s: %s", self._key, type(error).__name__, error)
            self._inner = None
            return None

    @property
    def name(self) -> str | None:
        """Name of the inner logger's project, None once it has failed."""
        return self._attempt(lambda: self._inner.name) if self._inner else None

    @property
    def version(self) -> int | str | None:
        """Version of the inner logger, None once it has failed."""
        return self._attempt(lambda: self._inner.version) if self._inner else None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers of a step."""
        if self._inner:
            self._attempt(lambda: self._inner.log_metrics(metrics, step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log the configuration."""
        if self._inner:
            self._attempt(lambda: self._inner.log_hyperparams(params, *args, **kwargs))

    def log_summary(self, summary: dict[str, Any]) -> None:
        """Log the final numbers of a run: W&B's summary, the last step of other loggers."""
        if self._inner is None:
            return
        if hasattr(self._inner.experiment, "summary"):
            self._attempt(lambda: self._inner.experiment.summary.update(summary))  # type: ignore[union-attr]
        else:
            numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
            self.log_metrics(numbers)

    def save(self) -> None:
        """Flush."""
        if self._inner:
            self._attempt(self._inner.save)

    def finalize(self, status: str) -> None:
        """Flush at the end of a fit."""
        if self._inner:
            self._attempt(lambda: self._inner.finalize(status))

    def finish(self, exit_code: int) -> None:
        """Close the run for good; W&B learns whether it failed. Call in ``finally``."""
        if self._inner is None:
            return
        if type(self._inner).__name__ == "WandbLogger":
            self._attempt(lambda: self._inner.experiment.finish(exit_code=exit_code))  # type: ignore[union-attr]
        else:
            self.save()
