"""Fine-tuning under masks: one training, or the best of none, gentle and full by validation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.optim.swa_utils import update_bn

from mmp.config.schema import FinetuneConfig, PruneConfig
from mmp.data.module import ImageData
from mmp.training.checkpoints import epochs_of, last_checkpoint
from mmp.training.classifier import Classifier
from mmp.training.evaluation import accuracy, device_of
from mmp.training.trainer import build_callbacks, build_trainer, fit, recorder_of

log = logging.getLogger(__name__)

_UNTRAINED: dict[str, Any] = {"epochs": 0, "history": []}


def finetune(
    config: PruneConfig,
    recipe: FinetuneConfig,
    model: nn.Module,
    teacher: nn.Module,
    masking: Sequence[pl.Callback],
    data: ImageData,
    loggers: Sequence[Logger],
    folder: Path,
) -> dict[str, Any]:
    """Train a model while its masks come and hold; leave it at the best validated epoch.

    Args:
        config: Trainer and callbacks.
        recipe: How to train.
        model: The model to begin with, changed in place.
        teacher: The dense model, which a recipe with distillation follows.
        masking: The callbacks that bring the masks, average under them, and look on.
        data: Train and validation splits.
        loggers: Where epochs are logged.
        folder: Where checkpoints go; the last one there is resumed from if a run of the same settings was interrupted.

    Returns:
        What ``result.json`` says of it: the number of epochs, and the metrics of each.
    """
    pl.seed_everything(config.seed, workers=True, verbose=False)
    configured = build_callbacks(config, folder)
    module = Classifier(model, recipe, config.data.classes, teacher, config.seed)
    checkpoints = folder / "checkpoints"
    trainer = build_trainer(config, recipe.epochs, [*masking, *configured.values()], loggers, checkpoints)
    last = last_checkpoint(checkpoints)
    before = epochs_of(last) if last and trainer.world_size > 1 else trainer.current_epoch
    fit(trainer, module, data, last)
    best = configured.get("best")
    if isinstance(best, ModelCheckpoint) and best.best_model_path:
        module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    if recipe.reestimate_norms:
        reestimate_norms(model, data, device_of(config))
    epochs = int(trainer.callback_metrics.get("epochs", max(before, trainer.current_epoch)))
    return {"epochs": epochs, "history": recorder_of(trainer).history()}


def reestimate_norms(model: nn.Module, data: ImageData, device: torch.device) -> None:
    """Take means and variances of all batch norms anew, from the calibration images."""
    update_bn((images.to(device) for images, _ in data.calibration_dataloader()), model.to(device))


def finetune_best(
    config: PruneConfig,
    dense: nn.Module,
    start: nn.Module,
    masked: nn.Module,
    masking: Callable[[], Sequence[pl.Callback]],
    data: ImageData,
    loggers: Sequence[Logger],
    folder: Path,
) -> tuple[nn.Module, dict[str, Any]]:
    """Fine-tune as configured; with ``finetune.gentle`` set, choose none, gentle or full on validation.

    Args:
        config: Recipe, trainer and callbacks.
        dense: The dense model.
        start: The model that a training begins with, left as it is.
        masked: The model under its final masks that no training leaves; a copy of it is returned then.
        masking: Makes the callbacks that bring the masks, for each training anew.
        data: Train and validation splits.
        loggers: Where the epochs of the full recipe are logged.
        folder: The run's folder.

    Returns:
        The model, and what ``result.json`` says of its training, and of the choice if there was one.
    """
    recipe = config.finetune
    if not recipe.epochs:
        model = copy.deepcopy(masked)
        if recipe.reestimate_norms:
            reestimate_norms(model, data, device_of(config))
        return model, _UNTRAINED
    if recipe.gentle is None:
        model = copy.deepcopy(start)
        return model, finetune(config, recipe, model, dense, masking(), data, loggers, folder)
    rates = {"gentle": recipe.gentle, "full": 1.0}
    models, trainings = {"none": copy.deepcopy(masked)}, {"none": _UNTRAINED}
    for name, share in rates.items():
        models[name] = copy.deepcopy(start)
        lower = replace(recipe, learning_rate=share * recipe.learning_rate)
        heard = loggers if name == "full" else []
        below = folder / "checkpoints" / name
        trainings[name] = finetune(config, lower, models[name], dense, masking(), data, heard, below)
    validation, _ = accuracy(models, data.val_dataloader(), config.data.classes, device_of(config))
    chosen = max(models, key=lambda name: validation[name])  # the first of equals: the least training
    log.info("fine-tuning %s is best on validation: %s", chosen, validation)
    return models[chosen], {**trainings[chosen], "finetune_choice": chosen, "finetune_validation": validation}
