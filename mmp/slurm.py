"""Slurm's time limits: a signal that comes before the limit, a checkpoint after the batch, a place in the queue again.

Lightning has a handler of its own, which saves wherever the signal finds the process, be it in the middle of an
optimizer step. This one waits for the end of the batch, and a training goes on from there as if nothing had been.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from mmp.checkpoints import LAST

log = logging.getLogger(__name__)

SIGNAL = signal.SIGUSR1  # sbatch --signal=USR1@120; submitit uses USR2 for itself
_MOST_REQUEUES = 100  # a limit too short for any progress must not go round for ever


def job_id() -> str | None:
    """Return the Slurm job that this process is part of, as ``squeue`` names it, or None."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def restarts() -> int:
    """Return how often Slurm has run this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def use_own_cores() -> None:
    """Compute on the cores that Slurm has given this job, which not every cluster sees to; OMP_NUM_THREADS wins."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    if cores and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(int(cores))


@contextmanager
def requeued_in_time() -> Iterator[None]:
    """Go back into the queue when the signal comes; within a training, `SaveInTime` sees to it first."""
    if job_id() is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()  # processes that are forked from this one have no say

    def leave(*_: Any) -> None:
        if os.getpid() == owner:
            requeue()

    before = signal.signal(SIGNAL, leave)
    try:
        yield
    finally:
        signal.signal(SIGNAL, before)


def requeue() -> None:
    """Put this job back into the queue, and wait for Slurm to end the process; returns only if Slurm refuses."""
    job = job_id()
    if restarts() >= _MOST_REQUEUES:
        log.error("job %s was requeued %d times and is still not done; give it more time", job, restarts())
        return
    log.warning("job %s is at its time limit and goes back into the queue", job)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, which would cost KillWait seconds
    command = ["scontrol", "requeue", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        log.error("scontrol requeue %s failed (%s); the same sweep started again goes on", job, done.stderr.strip())
        return
    while True:
        time.sleep(1)


class SaveInTime(pl.Callback):
    """Writes the last checkpoint at the end of the batch in which the signal came, and requeues the job.

    Not after an epoch's last batch: its validation comes first, and the epoch's own checkpoint (``callbacks.last``).

    Args:
        folder: Where the training keeps its checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._asked = folder / LAST, False

    def _note(self, *_: Any) -> None:
        self._asked = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen."""
        self._before: Any = signal.signal(SIGNAL, self._note)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and requeue, where no gradients are being accumulated."""
        within = not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._asked and within:
            trainer.save_checkpoint(self._path)
            self._leave()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Requeue after an epoch's own checkpoint."""
        if self._asked:
            self._leave()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop listening; what comes after the training is done anew."""
        signal.signal(SIGNAL, self._before)
        if self._asked:
            self._leave()

    def _leave(self) -> None:
        self._asked = False
        requeue()
