"""Short trainings of a classifier with the masking callback, and callbacks that watch or disturb them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks.pruning import MaskPruning
from callbacks.selection import CheckpointAtTarget
from mmp.config.schema import RecipeConfig
from mmp.data.loader import EpochLoader, EpochShuffle, Split
from mmp.training.classifier import Classifier


def digits() -> TensorDataset:
    """Return 320 images of scikit-learn's digits, (320, 1, 8, 8), with their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images[:320]).float().unsqueeze(1) / 16
    return TensorDataset(images, torch.from_numpy(bunch.target[:320]))


def fit(
    model: nn.Module,
    data: TensorDataset,
    callbacks: list[Callback],
    folder: Path,
    epochs: int = 4,
    recipe: dict[str, Any] | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    """Train a model, and return the trainer."""
    settings = {"optimizer": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1, "scheduler": "cosine"}
    module = Classifier(model, RecipeConfig(name="test", epochs=epochs, **{**settings, **(recipe or {})}), 10)
    train = EpochLoader(Split(data, range(len(data))), 64, EpochShuffle(len(data), seed=0))
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        accelerator="cpu",
        deterministic=True,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        **options,
    )
    trainer.fit(module, train, DataLoader(data, batch_size=320), ckpt_path=ckpt_path, weights_only=True)
    return trainer


class Watch(Callback):
    """Records the sparsity of each epoch, and how often a pruned weight is nonzero after a step."""

    def __init__(self, pruning: MaskPruning) -> None:
        self.pruning = pruning
        self.sparsities: list[float] = []
        self.revived = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.pruning.masks:
            weights = dict(pl_module.model.named_parameters())
            for name, mask in self.pruning.masks.items():
                self.revived += int((weights[name][~mask] != 0).sum())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sparsities.append(self.pruning.masks.sparsity if self.pruning.masks else 0.0)


class Crash(Callback):
    """Ends a training in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("power cut")


def checkpoints(folder: Path) -> list[Callback]:
    """Return callbacks that save the best and the last state to a folder."""
    return [
        CheckpointAtTarget(folder, filename="best", monitor="val/accuracy", mode="max", enable_version_counter=False),
        ModelCheckpoint(folder, filename="last", enable_version_counter=False),
    ]
