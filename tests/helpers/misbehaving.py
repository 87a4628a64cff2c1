"""A callback for tests that makes the jobs of chosen strategies crash, fail or run slowly."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import pytorch_lightning as pl


class UnpicklableError(Exception):
    """An error that cannot be pickled, and so cannot be sent to another process."""

    def __init__(self, first: str, second: threading.Lock) -> None:
        super().__init__(first)
        self.second = second


class Misbehave(pl.Callback):
    """Disturbs a training at its start or at the end of its first batch.

    Args:
        strategy: The strategy of this job.
        deeds: What to do, by strategy: ``kill``, ``terminate``, ``abort`` (with a last line of output), ``exit``,
            ``raise``, ``slow`` (half a second per batch).
        once: A folder. If given, a deed is done only once per strategy, and jobs are slow only while the folder
            contains a file called ``slow``.
    """

    def __init__(self, strategy: str, deeds: dict[str, str], once: str | None = None) -> None:
        self.deed = deeds.get(strategy)
        self._mark = Path(once) / strategy if once else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._mark and self.deed != "slow":
            if self._mark.exists():
                self.deed = None
            else:
                self._mark.touch()
        if self.deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.deed == "abort":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.write(2, b"last words\n")
            os.abort()
        if self.deed == "exit":
            sys.exit(3)
        if self.deed == "raise":
            raise UnpicklableError("diverged", threading.Lock())

    def on_train_batch_end(self, *_: object) -> None:
        if self.deed == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.deed == "slow" and (not self._mark or self._mark.with_name("slow").exists()):
            time.sleep(0.5)


def overrides(once: Path | None = None, **deeds: str) -> list[str]:
    """Return the overrides that add the callback to every job of a sweep."""
    pairs = ", ".join(f"{strategy}: {deed}" for strategy, deed in deeds.items())
    return [
        "+callbacks.misbehave._target_=misbehaving.Misbehave",
        "+callbacks.misbehave.strategy=${strategy.name}",
        f"+callbacks.misbehave.deeds={{{pairs}}}",
        *([f"+callbacks.misbehave.once={once}"] if once else []),
    ]
