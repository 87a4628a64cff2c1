"""Choosing and stopping, but only among models that carry their final masks.

While a schedule is still under way the model is less sparse and more accurate than it will be; judged by
validation accuracy alone, such a model would win, and training would stop as soon as the last masks hurt.
"""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from callbacks.pruning import MaskPruning
from mmp.training.checkpoints import BestCheckpoint


def at_target(trainer: pl.Trainer) -> bool:
    """Return whether the trainer's model carries its final masks, or is not being pruned at all."""
    pruning = [c for c in trainer.callbacks if isinstance(c, MaskPruning)]  # type: ignore[attr-defined]
    return all(callback.at_target for callback in pruning)


class _OnlyAtTarget(pl.Callback):
    """Hides the ends of validations and epochs from the callback behind it until the final masks are in force."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pass the end of a validation on."""
        if at_target(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pass the end of an epoch on."""
        if at_target(trainer):
            super().on_train_epoch_end(trainer, pl_module)


class CheckpointAtTarget(_OnlyAtTarget, BestCheckpoint):
    """A ModelCheckpoint that saves nothing before the final masks are in force."""


class EarlyStoppingAtTarget(_OnlyAtTarget, EarlyStopping):
    """Lightning's EarlyStopping, whose patience begins when the final masks are in force.

    A run that had stopped when it was interrupted stays stopped; Lightning would train on.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once where the patience of a resumed run is used up."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True
