"""The loggers of a run. A logger that fails is switched off, and the run goes on."""

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

log = logging.getLogger(__name__)


def build_loggers(
    config: TrainConfig, folder: Path, run_id: str, job_type: str, tags: Sequence[str] = ()
) -> list[SafeLogger]:
    """Return the loggers of a run, each wrapped in a :class:`SafeLogger`.

    Args:
        config: The run's configuration.
        folder: The folder to which loggers write, unless they are configured otherwise.
        run_id: Stable id of the run: repeated or resumed, it stays the same run in W&B.
        job_type: The job type in W&B.
        tags: The tags in W&B.
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
    """Open the loggers of a run for a ``with`` block and log its settings; close them at the end, also on an error.

    Args:
        config: The run's configuration.
        run: The run's folder and name.
        job_type: The job type in W&B, ``prune`` or ``dense``.
        tags: The tags in W&B.
        watch: Counts the time of opening as the phase ``loggers``.
    """
    with watch(LOGGERS):
        loggers = build_loggers(config, run.path, run.head["run_name"], job_type, tags)
    with finishing(loggers):
        with watch(LOGGERS):
            for logger in loggers:
                logger.log_hyperparams(identity(settings_of(config)))
        yield loggers


@dataclass(frozen=True)
class Artifact:
    """A file for dashboards that store files and the runs that produce and use them.

    Attributes:
        name: Name of the content, the same for all runs that share the file.
        kind: ``model``, ``scores`` or ``masks``.
        path: The file; it must not change.
        made: Whether the run has produced the file; otherwise the run uses it.
        metadata: Values that the dashboard shows with the file.
    """

    name: str
    kind: str
    path: Path
    made: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)


class SafeLogger(Logger):
    """Passes every call on to another logger. The first failure of that logger is a warning and switches it off.

    Args:
        make: Creates the inner logger; it may fail, too.
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
            log.warning("logger %r failed and is switched off: %s: %s", self._key, type(error).__name__, error)
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
        """Log the metrics of a step."""
        self._attempt(lambda inner: inner.log_metrics(metrics, step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log the configuration."""
        self._attempt(lambda inner: inner.log_hyperparams(params, *args, **kwargs))

    def log_artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """Log the files that a run uses or has produced, to loggers that store files."""
        self._attempt(lambda inner: inner.log_artifacts(artifacts) if hasattr(inner, "log_artifacts") else None)

    def log_summary(self, summary: Mapping[str, Any], layers: Iterable[Mapping[str, Any]] = ()) -> None:
        """Log the final numbers of a run; a logger without summaries gets them as metrics ``final/...``.

        Args:
            summary: Final numbers and names.
            layers: The entries of ``result.json`` about each layer.
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
        """Close the run, with an exit code that is 0 if it succeeded."""

        def close(inner: Any) -> None:
            inner.save()
            if hasattr(inner.experiment, "finish"):
                inner.experiment.finish(exit_code=exit_code)

        self._attempt(close)


@contextmanager
def finishing(loggers: Iterable[SafeLogger]) -> Iterator[None]:
    """Close loggers at the end of a ``with`` block, with exit code 1 after an exception."""
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        for logger in loggers:
            logger.finish(exit_code)
