"""Best-model selection and early stopping that ignore models without their final masks.

Before the final masks, a model is less sparse and more accurate than at the end. By validation accuracy alone, such a
model would be selected as the best, and training would stop when the last masks lower the accuracy.
"""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from callbacks.pruning import MaskPruning
from mmp.training.checkpoints import BestCheckpoint


def at_target(trainer: pl.Trainer) -> bool:
    """Return whether the trainer's model has its final masks, or is not pruned at all."""
    pruning = [c for c in trainer.callbacks if isinstance(c, MaskPruning)]  # type: ignore[attr-defined]
    return all(callback.at_target for callback in pruning)


class _OnlyAtTarget(pl.Callback):
    """Passes the ends of validations and epochs to the next class only when the final masks are applied."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Call the next class under the final masks."""
        if at_target(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Call the next class under the final masks."""
        if at_target(trainer):
            super().on_train_epoch_end(trainer, pl_module)


class CheckpointAtTarget(_OnlyAtTarget, BestCheckpoint):
    """A ModelCheckpoint that saves nothing before the final masks are applied."""


class EarlyStoppingAtTarget(_OnlyAtTarget, EarlyStopping):
    """Lightning's EarlyStopping, with patience counted from the final masks.

    A resumed run whose patience was used up before the interruption stops at once; Lightning's own class would train
    on.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the patience of a resumed run is used up."""
        if self.wait_count >= max(self.patience, 1):
            trainer.should_stop = True
