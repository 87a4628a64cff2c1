"""Fine-tuning under masks: one training, or the best of three by validation accuracy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.optim.swa_utils import update_bn

from mmp.config.schema import PruneConfig
from mmp.data.module import ImageData
from mmp.training.checkpoints import epochs_of, last_checkpoint
from mmp.training.classifier import Classifier
from mmp.training.evaluation import accuracy, device_of
from mmp.training.trainer import build_callbacks, build_trainer, fit, recorder_of

log = logging.getLogger(__name__)

_UNTRAINED: dict[str, Any] = {"epochs": 0, "history": []}


@dataclass(frozen=True)
class Finetuning:
    """The settings and data of a fine-tuning.

    Attributes:
        config: Trainer, callbacks and seed; ``config.finetune`` is the recipe.
        data: Train, validation and calibration splits.
        teacher: The dense model, which a recipe with distillation follows.
        new_callbacks: Returns new callbacks for one training: they apply the masks and average the weights.
        loggers: Loggers for the metrics of each epoch.
        folder: The parent of ``checkpoints``; an interrupted training resumes from the last checkpoint there.
    """

    config: PruneConfig
    data: ImageData
    teacher: nn.Module
    new_callbacks: Callable[[], Sequence[pl.Callback]]
    loggers: Sequence[Logger]
    folder: Path

    def at_rate(self, name: str, share: float, loggers: Sequence[Logger]) -> Finetuning:
        """Return a fine-tuning with a share of the learning rate, its own loggers and its own folder of checkpoints."""
        recipe = replace(self.config.finetune, learning_rate=share * self.config.finetune.learning_rate)
        config, folder = replace(self.config, finetune=recipe), self.folder / "checkpoints" / name
        return replace(self, config=config, loggers=loggers, folder=folder)


def finetune(task: Finetuning, model: nn.Module) -> dict[str, Any]:
    """Train a model while its masks are applied, and leave it at the epoch with the best validation accuracy.

    Args:
        task: The recipe, the data and everything else that the training uses.
        model: The model to train, changed in place.

    Returns:
        The entries of ``result.json`` about the training: the number of epochs, the metrics of each epoch, and whether
        steps were compiled, if ``trainer.compile`` asks for it.
    """
    config, recipe = task.config, task.config.finetune
    pl.seed_everything(config.seed, workers=True, verbose=False)
    configured = build_callbacks(config, task.folder)
    compiles = config.trainer.compile
    module = Classifier(model, recipe, config.data.classes, task.teacher, config.seed, compiles)
    checkpoints = task.folder / "checkpoints"
    callbacks = [*task.new_callbacks(), *configured.values()]
    trainer = build_trainer(config, recipe.epochs, callbacks, task.loggers, checkpoints)
    last = last_checkpoint(checkpoints)
    before = epochs_of(last) if last and trainer.world_size > 1 else trainer.current_epoch
    fit(trainer, module, task.data, last)
    best = configured.get("best")
    if isinstance(best, ModelCheckpoint) and best.best_model_path:
        module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    if recipe.reestimate_norms:
        reestimate_norms(model, task.data, device_of(config))
    epochs = int(trainer.callback_metrics.get("epochs", max(before, trainer.current_epoch)))
    compiled = {"compiled": bool(trainer.callback_metrics.get("compiled"))} if compiles else {}
    return {"epochs": epochs, "history": recorder_of(trainer).history(), **compiled}


def reestimate_norms(model: nn.Module, data: ImageData, device: torch.device) -> None:
    """Recompute the running means and variances of all batch norms on the calibration images.

    Batches have the training size. A last batch of one image joins the one before, since batch norm in training mode
    cannot take the variance of one image.
    """
    images = torch.cat([batch for batch, _ in data.calibration_dataloader()])
    *batches, last = images.split(max(data.cfg.batch_size, 2))
    if batches and len(last) == 1:
        last = torch.cat([batches.pop(), last])
    update_bn((batch.to(device) for batch in (*batches, last)), model.to(device))


def finetune_best(task: Finetuning, start: nn.Module, masked: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """Fine-tune as configured.

    With ``finetune.gentle`` set, the result is the best on validation of three models: not trained, trained at that
    share of the learning rate, and trained at the full learning rate.

    Args:
        task: The recipe, the data and everything else that the training uses.
        start: The model that a training begins with; it is not changed.
        masked: The model under its final masks, for a recipe without training; it is not changed.

    Returns:
        The fine-tuned model, and the entries of ``result.json`` about its training and the choice.
    """
    recipe = task.config.finetune
    if not recipe.epochs:
        model = copy.deepcopy(masked)
        if recipe.reestimate_norms:
            reestimate_norms(model, task.data, device_of(task.config))
        return model, _UNTRAINED
    if recipe.gentle is None:
        model = copy.deepcopy(start)
        return model, finetune(task, model)
    variants = {"gentle": task.at_rate("gentle", recipe.gentle, ()), "full": task.at_rate("full", 1.0, task.loggers)}
    models, trainings = {"none": copy.deepcopy(masked)}, {"none": _UNTRAINED}
    for name, variant in variants.items():
        models[name] = copy.deepcopy(start)
        trainings[name] = finetune(variant, models[name])
    validation, _ = accuracy(models, task.data.val_dataloader(), task.config.data.classes, device_of(task.config))
    chosen = max(models, key=lambda name: validation[name])  # the first of equals: the least training
    log.info("fine-tuning %s is best on validation: %s", chosen, validation)
    return models[chosen], {**trainings[chosen], "finetune_choice": chosen, "finetune_validation": validation}
