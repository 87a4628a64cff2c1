"""Models: timm networks, their weights, their training and their evaluation."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import timm
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from mmp.config import ModelConfig, RecipeConfig
from mmp.errors import MmpError, nearest
from mmp.files import load_tensors

SCHEDULERS = ("cosine", "step", "multistep", "poly", "tanh", "none")


def build_model(cfg: ModelConfig) -> nn.Module:
    """Create a timm model.

    Raises:
        MmpError: on a name that timm does not know (with the nearest), or arguments that the model refuses.
    """
    if not timm.is_model(cfg.name):
        raise MmpError(f"model.name={cfg.name}: timm has no such model; {nearest(cfg.name, timm.list_models())}")
    try:
        return timm.create_model(
            cfg.name,
            pretrained=cfg.pretrained,
            num_classes=cfg.num_classes,
            in_chans=cfg.in_chans,
            **cfg.kwargs,
        )
    except Exception as error:  # whatever a constructor or a download raises
        if cfg.pretrained:
            way_out = "without a network, set model.pretrained=false and model.checkpoint=<file>"
            raise MmpError(f"model.name={cfg.name} with pretrained weights: {error}; {way_out}") from error
        raise MmpError(f"model.name={cfg.name}: timm cannot build it with {cfg.kwargs} ({error})") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a model: safetensors, a torch state_dict, or a Lightning checkpoint of ours.

    Torch files are read with ``weights_only=True``: a file that would execute code is refused.

    Raises:
        MmpError: if the file is missing, unreadable, unsafe or of another architecture.
    """
    state = _read_state(path)
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    problems += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise MmpError(f"{path}: not a checkpoint of this model ({'; '.join(problems[:3])}{more}); check model.name")
    model.load_state_dict(state)
    require_finite(model, str(path))


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if not path.is_file():
        raise MmpError(f"model.checkpoint={path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MmpError(f"{path}: refused or unreadable ({first}); use a safetensors file or a state_dict") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise MmpError(f"{path}: holds no state_dict")
    if state and all(name.startswith("model.") for name in state):
        return {name.removeprefix("model."): value for name, value in state.items()}
    return dict(state)


def require_finite(model: nn.Module, source: str) -> None:
    """Raise if a weight or buffer is NaN or infinite.

    Args:
        model: The network.
        source: Where the weights came from, for the message.

    Raises:
        MmpError: naming the tensor.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise MmpError(f"{source}: {name!r} holds NaN or infinity; the file is damaged or training diverged")


def check_recipe(recipe: RecipeConfig) -> None:
    """Raise if timm knows no such optimizer or scheduler.

    Raises:
        MmpError: with the nearest name.
    """
    if recipe.optimizer not in list_optimizers():
        raise MmpError(f"optimizer={recipe.optimizer}: {nearest(recipe.optimizer, map(str, list_optimizers()))}")
    if recipe.scheduler not in SCHEDULERS:
        raise MmpError(f"scheduler={recipe.scheduler}: {nearest(recipe.scheduler, SCHEDULERS)}")


class Classifier(pl.LightningModule):
    """Trains an image classifier by a recipe.

    Args:
        model: A network from (B, C, H, W) images to (B, classes) logits.
        recipe: Optimizer, schedule and loss.
        classes: Number of classes.

    Raises:
        MmpError: on an optimizer or scheduler that timm does not know; and, while training, on a loss that is
            not finite.
    """

    def __init__(self, model: nn.Module, recipe: RecipeConfig, classes: int) -> None:
        super().__init__()
        check_recipe(recipe)
        self.model, self.recipe = model, recipe
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, C, H, W)."""
        return self.model(images)

    def training_step(self, batch: Sequence[Tensor], _index: int) -> Tensor:
        """Return the loss of one batch."""
        images, targets = batch
        loss = self.loss(self(images), targets)
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
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

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
            self.model, opt=recipe.optimizer, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        warmup = min(recipe.warmup_epochs, recipe.epochs - 1)
        if recipe.scheduler == "none" and not warmup:
            return optimizer
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.scheduler,
            num_epochs=recipe.epochs - warmup,  # the warm-up comes before them
            warmup_epochs=warmup,
            warmup_lr=recipe.learning_rate / 100,
            min_lr=recipe.min_learning_rate,
            warmup_prefix=True,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:  # noqa: ARG002
        """Set the rate of the next epoch; timm's schedules are functions of the epoch."""
        scheduler.step(epoch=self.current_epoch + 1)


@torch.inference_mode()
def accuracy(
    models: Mapping[str, nn.Module], batches: Iterable[Sequence[Tensor]], classes: int, device: torch.device
) -> tuple[dict[str, float], int]:
    """Measure several models in one pass over a split, on one device, so every sample counts exactly once.

    Args:
        models: Networks by name.
        batches: (images, labels) pairs.
        classes: Number of classes.
        device: Where to compute.

    Returns:
        Top-1 accuracy in [0, 1] of each model, and the number of samples that were read.
    """
    metrics = {name: MulticlassAccuracy(classes, average="micro").to(device) for name in models}
    modes = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.to(device).eval()
    samples = 0
    for images, labels in batches:
        inputs, targets = images.to(device), labels.to(device)
        samples += len(inputs)
        for name, model in models.items():
            metrics[name].update(model(inputs), targets)
    for name, model in models.items():
        model.train(modes[name])
    return {name: float(metric.compute()) for name, metric in metrics.items()}, samples
