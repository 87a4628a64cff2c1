"""The Lightning callback that notes how far a training is."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from mmp.runs.progress_file import ProgressFile


class WriteProgress(pl.Callback):
    """ProgressFile epoch, share of the training and validation accuracy; changes nothing of what is trained.

    Args:
        notes: Of the run.
    """

    def __init__(self, notes: ProgressFile) -> None:
        self._notes = notes

    def _note(self, trainer: pl.Trainer, batches: int) -> None:
        if trainer.is_global_zero:
            epoch, epochs = trainer.current_epoch, trainer.max_epochs or 1
            fraction = (epoch + batches / max(trainer.num_training_batches, 1)) / epochs
            self._notes.add(epoch=epoch + 1, epochs=epochs, fraction=fraction)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that an epoch begins."""
        self._note(trainer, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note that a batch is done."""
        self._note(trainer, batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what the model reaches."""
        if trainer.is_global_zero and "val/accuracy" in trainer.callback_metrics:
            self._notes.add(accuracy=float(trainer.callback_metrics["val/accuracy"]))
