"""The Lightning callback that saves a training and requeues its Slurm job before the time limit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from mmp.config.schema import TrainConfig
from mmp.runs import slurm
from mmp.training.checkpoints import LAST


def saving_in_time(config: TrainConfig) -> list[pl.Callback]:
    """Return the callback for a training on one device inside a Slurm job, none otherwise."""
    return [SaveInTime()] if config.trainer.devices == 1 and slurm.job_id() else []


class SaveInTime(pl.Callback):
    """Writes the last checkpoint at the end of the batch in which Slurm's signal received, and requeues the job.

    Lightning has a handler of its own, which saves wherever the signal finds the process, be it in the middle of an
    optimizer step. From the end of a batch a training goes on as if nothing had been.

    Not after an epoch's last batch: its validation comes first, and the epoch's own checkpoint (``callbacks.last``).

    The checkpoint goes into the trainer's ``default_root_dir``.
    """

    def __init__(self) -> None:
        self._asked = slurm.SignalFlag()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen."""
        self._before: Any = signal.signal(slurm.SIGNAL, self._asked)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and requeue, where no gradients are being accumulated."""
        within = not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._asked.received and within:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST)
            self._leave()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Requeue after an epoch's own checkpoint."""
        if self._asked.received:
            self._leave()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop listening; what comes after the training is done anew."""
        signal.signal(slurm.SIGNAL, self._before)
        if self._asked.received:
            self._leave()

    def _leave(self) -> None:
        self._asked.received = False
        slurm.requeue()
