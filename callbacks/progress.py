"""The Lightning callback that writes the progress of a training to the run's folder."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from mmp.runs.progress_file import ProgressFile


class WriteProgress(pl.Callback):
    """Writes epoch, fraction of the training and validation accuracy; does not affect the training.

    Args:
        progress: The run's progress file.
    """

    def __init__(self, progress: ProgressFile) -> None:
        self._progress = progress

    def _write(self, trainer: pl.Trainer, batches: int) -> None:
        if trainer.is_global_zero:
            epoch, epochs = trainer.current_epoch, trainer.max_epochs or 1
            fraction = (epoch + batches / max(trainer.num_training_batches, 1)) / epochs
            self._progress.add(epoch=epoch + 1, epochs=epochs, fraction=fraction)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write that an epoch begins."""
        self._write(trainer, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write that a batch is done."""
        self._write(trainer, batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the validation accuracy."""
        if trainer.is_global_zero and "val/accuracy" in trainer.callback_metrics:
            self._progress.add(accuracy=float(trainer.callback_metrics["val/accuracy"]))
