"""Training and evaluation of an image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from mmp.config.schema import FinetuneConfig, RecipeConfig
from mmp.data.loader import mixed
from mmp.errors import MmpError, nearest
from mmp.pruning.layers.eval_mode import forget_cached

SCHEDULERS = ("cosine", "step", "multistep", "poly", "tanh", "none")


def check_recipe(recipe: RecipeConfig) -> None:
    """Raise if timm knows no such optimizer or scheduler.

    Raises:
        MmpError: with the nearest name.
    """
    if recipe.optimizer not in list_optimizers():
        raise MmpError(f"optimizer={recipe.optimizer}: {nearest(recipe.optimizer, map(str, list_optimizers()))}")
    if recipe.scheduler not in SCHEDULERS:
        raise MmpError(f"scheduler={recipe.scheduler}: {nearest(recipe.scheduler, SCHEDULERS)}")


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) of softened outputs, averaged over images (Hinton et al. 2015, 1503.02531).

    Args:
        logits: Of the network that is trained, (B, classes).
        teacher: Of the network that it is to follow, (B, classes).
        temperature: T, which divides both.
    """
    student, target = (F.log_softmax(values / temperature, dim=1) for values in (logits, teacher))
    return temperature**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)


class Classifier(pl.LightningModule):
    """Trains an image classifier by a recipe.

    Args:
        model: A network from (B, C, H, W) images to (B, classes) logits.
        recipe: Optimizer, schedule and loss.
        classes: Number of classes.
        teacher: The dense network, for a recipe with distillation; put in eval mode and moved to the images' device.
        seed: What a model draws, for dropout for instance, is a function of this, the epoch and the batch.

    Raises:
        MmpError: on an optimizer or scheduler that timm does not know; and, while training, on a loss that is
            not finite.
    """

    def __init__(
        self, model: nn.Module, recipe: RecipeConfig, classes: int, teacher: nn.Module | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        check_recipe(recipe)
        self.model, self.recipe, self._seed = model, recipe, seed
        distils = isinstance(recipe, FinetuneConfig) and recipe.distillation > 0
        self._teacher = [teacher.eval()] if teacher is not None and distils else []  # in a list: no part of the module
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, C, H, W)."""
        return self.model(images)

    def on_train_batch_start(self, _batch: Sequence[Tensor], index: int) -> None:
        """Draw for this batch what an uninterrupted training draws for it."""
        # For devices that are not in use, `torch.manual_seed` keeps a stack trace of each call: half a millisecond.
        seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        seed(mixed(self._seed, self.current_epoch, index, self.global_rank))

    def training_step(self, batch: Sequence[Tensor], _index: int) -> Tensor:
        """Return the loss of one batch."""
        images, targets = batch
        logits = self(images)
        loss = self.loss(logits, targets)
        for teacher in self._teacher:
            assert isinstance(self.recipe, FinetuneConfig)
            with torch.no_grad():
                followed = teacher.to(images.device)(images)
            share = self.recipe.distillation
            loss = (1 - share) * loss + share * distillation_loss(logits, followed, self.recipe.temperature)
        self.train_loss.update(loss.detach(), weight=len(images))
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's loss, and stop with a clear error if it is not finite."""
        loss = self.train_loss.compute()
        self.train_loss.reset()
        if not torch.isfinite(loss):
            raise MmpError(
                f"the training loss became {loss.item()} in epoch {self.current_epoch}; lower the learning rate "
                f"(now {self.recipe.learning_rate:g}) or set trainer.gradient_clip_val"
            )
        self.log("train/loss", loss)
        self.log("epochs", float(self.current_epoch + 1), logger=False)  # of several devices, only metrics come home
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_epoch_start(self) -> None:
        """Evaluate the weights as they are now."""
        forget_cached(self.model)
        self.model.eval()

    def validation_step(self, batch: Sequence[Tensor], _index: int) -> None:
        """Accumulate loss and accuracy of one batch."""
        images, targets = batch
        logits = self(images)
        self.val_loss.update(self.loss(logits, targets), weight=len(images))
        self.val_accuracy.update(logits, targets)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's validation loss and accuracy."""
        self.log("val/loss", self.val_loss.compute())
        self.log("val/accuracy", self.val_accuracy.compute(), prog_bar=True)
        self.val_loss.reset()
        self.val_accuracy.reset()

    def configure_optimizers(self) -> Any:
        """Create timm's optimizer and schedule; no weight decay on biases and norms."""
        recipe = self.recipe
        optimizer = create_optimizer_v2(
            self.model,
            opt=recipe.optimizer,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        )
        # A training of one epoch warms up for less than one, where the rate can change within it.
        warmup = min(recipe.warmup_epochs, recipe.epochs / 2 if recipe.by_step else int(recipe.epochs - 1))
        if recipe.scheduler == "none" and not warmup and recipe.layer_decay is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches) // recipe.epochs
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="constant" if recipe.scheduler == "none" else recipe.scheduler,  # applies layer_decay
            num_epochs=recipe.epochs - warmup,  # type: ignore[arg-type]  # the warm-up comes before them
            warmup_epochs=warmup,  # type: ignore[arg-type]
            warmup_lr=recipe.learning_rate / 100,
            min_lr=recipe.min_learning_rate,
            warmup_prefix=True,
            step_on_epochs=not recipe.by_step,
            updates_per_epoch=steps,
        )
        interval = "step" if recipe.by_step else "epoch"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:  # noqa: ARG002
        """Set the rate of the next epoch, or step; timm's schedules are functions of it."""
        if self.recipe.by_step:
            scheduler.step_update(num_updates=self.global_step)
        else:
            scheduler.step(epoch=self.current_epoch + 1)
