"""Loggers that cannot harm a run: whatever a dashboard does, training goes on."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from mmp.config.identity import identity, settings_of
from mmp.config.objects import instantiate
from mmp.config.schema import TrainConfig, is_wandb
from mmp.runs.store import LOGGERS, RunFolder, Stopwatch


def build_loggers(
    config: TrainConfig, folder: Path, run_id: str, job_type: str, tags: Sequence[str] = ()
) -> list[SafeLogger]:
    """Return the loggers of a run, each guarded, so that training never fails because of one.

    Args:
        config: The run's configuration.
        folder: Where loggers write unless they are configured otherwise.
        run_id: Stable identifier of the run, so that the same run is the same run in W&B.
        job_type: What kind of run it is to W&B.
        tags: What W&B shall be able to filter by.
    """
    loggers = []
    for key, node in config.logger.items():
        if not node:
            continue
        arguments = {"save_dir": str(folder), **node}
        if is_wandb(node):
            arguments = {"id": run_id, "job_type": job_type, "tags": list(tags), **arguments}
        loggers.append(SafeLogger(partial(instantiate, arguments, f"logger.{key}"), key))
    return loggers


@contextmanager
def opened_loggers(
    config: TrainConfig, run: RunFolder, job_type: str, tags: Sequence[str], watch: Stopwatch
) -> Iterator[list[SafeLogger]]:
    """Open the loggers of a run, told of its settings, for a ``with`` block; they are closed however that ends.

    Args:
        config: The run's configuration.
        run: Where they write, and the run's name.
        job_type: ``prune`` or ``dense``.
        tags: What W&B shall be able to filter by.
        watch: Counts what opening takes apart from the run's own phases.
    """
    with watch(LOGGERS):
        loggers = build_loggers(config, run.path, run.head["run_name"], job_type, tags)
    with finishing(loggers):
        with watch(LOGGERS):
            for logger in loggers:
                logger.log_hyperparams(identity(settings_of(config)))
        yield loggers


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
