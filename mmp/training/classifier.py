"""The Lightning module that trains and validates an image classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from mmp.compilation import compiled
from mmp.config.schema import FinetuneConfig, RecipeConfig
from mmp.data.loader import mixed
from mmp.errors import MmpError, nearest
from mmp.pruning.layers.eval_mode import forget_cached

LossOfStep = Callable[[Tensor, Tensor], Tensor]  # of images and their classes
SCHEDULERS = ("cosine", "step", "multistep", "poly", "tanh", "none")


def check_recipe(recipe: RecipeConfig, section: str) -> None:
    """Check that timm has the optimizer and the scheduler of a recipe.

    Args:
        recipe: The recipe.
        section: Its section in the configuration, for the message: ``dense`` or ``finetune``.

    Raises:
        MmpError: if it has not; the message gives the nearest name.
    """
    if recipe.optimizer not in list_optimizers():
        close = nearest(recipe.optimizer, map(str, list_optimizers()))
        raise MmpError(f"{section}.optimizer={recipe.optimizer}: timm has no such optimizer; {close}")
    if recipe.scheduler not in SCHEDULERS:
        close = nearest(recipe.scheduler, SCHEDULERS)
        raise MmpError(f"{section}.scheduler={recipe.scheduler}: no such schedule; {close}")


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) of softened outputs, averaged over images (Hinton et al. 2015, 1503.02531).

    Args:
        logits: Logits of the student, the network that is trained, (B, classes).
        teacher: Logits of the teacher, (B, classes).
        temperature: T, by which both are divided.
    """
    student, target = (F.log_softmax(values / temperature, dim=1) for values in (logits, teacher))
    return temperature**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)


class Classifier(pl.LightningModule):
    """Trains an image classifier by a recipe.

    Args:
        model: A network from (B, C, H, W) images to (B, classes) logits.
        recipe: Optimizer, schedule and loss.
        classes: Number of classes.
        teacher: The dense network, for a recipe with distillation; put in eval mode and moved to the model's device.
        seed: Random numbers, of dropout for instance, are a function of this seed, the epoch and the batch.
        compiles: Whether ``torch.compile`` compiles the training steps.

    Raises:
        MmpError: if timm has no such optimizer or scheduler; and during training, if the loss is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: RecipeConfig,
        classes: int,
        teacher: nn.Module | None = None,
        seed: int = 0,
        compiles: bool = False,
    ) -> None:
        super().__init__()
        check_recipe(recipe, "finetune" if isinstance(recipe, FinetuneConfig) else "dense")
        self.model, self.recipe, self._seed = model, recipe, seed
        self._compiles, self._is_compiled = compiles, False
        self._loss_of_step: LossOfStep = self._loss
        distils = isinstance(recipe, FinetuneConfig) and recipe.distillation > 0
        # In a list, so that the teacher is not a submodule.
        self._teacher = [teacher.eval()] if teacher is not None and distils else []
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, C, H, W)."""
        return self.model(images)

    def on_train_start(self) -> None:
        """Move the teacher to the device of the training."""
        for teacher in self._teacher:
            teacher.to(self.device)

    def on_train_batch_start(self, batch: Sequence[Tensor], index: int) -> None:
        """Seed the random numbers of this batch, so that a resumed training draws the same ones."""
        if self._compiles:
            self._loss_of_step, self._compiles = self._compiled(*batch), False
            self._is_compiled = self._loss_of_step != self._loss
        # `torch.manual_seed` also stores a stack trace for devices that are not in use, which takes 0.5 ms per call.
        seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        seed(mixed(self._seed, self.current_epoch, index, self.global_rank))

    def training_step(self, batch: Sequence[Tensor], _index: int) -> Tensor:
        """Return the loss of one batch."""
        images, targets = batch
        loss = self._loss_of_step(images, targets)
        self.train_loss.update(loss.detach(), weight=len(images))
        return loss

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        logits = self(images)
        loss: Tensor = self.loss(logits, targets)
        for teacher in self._teacher:
            assert isinstance(self.recipe, FinetuneConfig)
            with torch.no_grad():
                # The teacher keeps its own precision: it is the dense model, which is measured afterwards.
                taught = teacher(images.to(next(teacher.parameters()).dtype))
            share = self.recipe.distillation
            loss = (1 - share) * loss + share * distillation_loss(logits, taught, self.recipe.temperature)
        return loss

    def _compiled(self, images: Tensor, targets: Tensor) -> LossOfStep:
        """Return the loss compiled for batches like this one.

        Weights and buffers stay as they are. Other attributes that a forward pass changes see one pass more.
        """

        def trial(loss: LossOfStep) -> None:
            with self.trainer.precision_plugin.forward_context():
                found = loss(images, targets)
            found.backward()

        before = [
            (module, {name: (buffer, buffer.clone()) for name, buffer in module._buffers.items() if buffer is not None})
            for module in self.model.modules()
        ]
        found = compiled(self._loss, trial, "training")
        for module, buffers in before:
            for name, (buffer, value) in buffers.items():
                module._buffers[name] = buffer  # a forward pass may have put another one in its place
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        self.model.zero_grad()
        return found

    def on_train_epoch_end(self) -> None:
        """Log the epoch's loss; raise an error if it is not finite."""
        loss = self.train_loss.compute()
        self.train_loss.reset()
        if not torch.isfinite(loss):
            raise MmpError(
                f"the training loss became {loss.item()} in epoch {self.current_epoch}; lower the learning rate "
                f"(now {self.recipe.learning_rate:g}) or set trainer.gradient_clip_val"
            )
        self.log("train/loss", loss)
        # With several devices, metrics are all that returns from the training processes.
        self.log("epochs", float(self.current_epoch + 1), logger=False)
        self.log("compiled", float(self._is_compiled), logger=False)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_epoch_start(self) -> None:
        """Put the model in eval mode, without values that it cached from earlier weights."""
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
        """Create timm's optimizer and scheduler, without weight decay on biases and norms."""
        recipe = self.recipe
        optimizer = create_optimizer_v2(
            self.model,
            opt=recipe.optimizer,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        )
        # The warm-up takes at most half of the training; with a rate per epoch, all epochs but one.
        warmup = min(recipe.warmup_epochs, recipe.epochs / 2 if recipe.by_step else int(recipe.epochs - 1))
        if recipe.scheduler == "none" and not warmup and recipe.layer_decay is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches) // recipe.epochs
        # A schedule whose steps change nothing applies warm-up and layer_decay; timm 1.0.20 has no "constant".
        schedule = {"sched": "step", "decay_rate": 1.0} if recipe.scheduler == "none" else {"sched": recipe.scheduler}
        scheduler, _ = create_scheduler_v2(
            optimizer,
            **schedule,
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
        """Set the learning rate of the next epoch or step, of which timm's schedules are functions."""
        if self.recipe.by_step:
            scheduler.step_update(num_updates=self.global_step)
        else:
            scheduler.step(epoch=self.current_epoch + 1)
