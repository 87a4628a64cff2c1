"""Choosing and stopping, but only among models that carry their final masks.

While a schedule is still under way the model is less sparse and more accurate than it will be; judged by
validation accuracy alone, such a model would win, and training would stop as soon as the last masks hurt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from callbacks.pruning import MaskPruning


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


class CheckpointAtTarget(_OnlyAtTarget, ModelCheckpoint):
    """Lightning's ModelCheckpoint, which saves nothing before the final masks are in force.

    A run that is resumed in a folder that was moved finds its best model there; Lightning would keep the old path
    and forget the best score.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of a checkpoint, with its files in this folder."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {key: here(state_dict[key]) for key in paths if key in state_dict}
        kept = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": kept, "dirpath": self.dirpath})


class EarlyStoppingAtTarget(_OnlyAtTarget, EarlyStopping):
    """Lightning's EarlyStopping, whose patience begins when the final masks are in force.

    A run that had stopped when it was interrupted stays stopped; Lightning would train on.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once where the patience of a resumed run is used up."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True
