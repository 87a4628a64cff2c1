"""The Lightning callback that saves a checkpoint and requeues the Slurm job before its time limit."""

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
    """Saves the last checkpoint at the end of the batch during which Slurm's signal arrived, and requeues the job.

    Lightning's own handler saves at once, possibly in the middle of an optimizer step. A training that resumes from the
    end of a batch gives the same weights as an uninterrupted one.

    After an epoch's last batch, the job is requeued only after the validation and the checkpoint of that epoch
    (``callbacks.last``).

    The checkpoint is saved in the trainer's ``default_root_dir``.
    """

    def __init__(self) -> None:
        self._signal = slurm.SignalFlag()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handler."""
        self._before: Any = signal.signal(slurm.SIGNAL, self._signal)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and requeue, unless gradients are being accumulated."""
        within = not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._signal.received and within:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST)
            self._requeue()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Requeue after the checkpoint of the previous epoch."""
        if self._signal.received:
            self._requeue()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the previous handler; the stages after a training are repeated when the job is requeued."""
        signal.signal(slurm.SIGNAL, self._before)
        if self._signal.received:
            self._requeue()

    def _requeue(self) -> None:
        self._signal.received = False
        slurm.requeue()
