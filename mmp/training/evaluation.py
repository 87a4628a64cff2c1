"""The accuracy of several models, measured in one pass over a split on one device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from mmp.config.schema import TrainConfig
from mmp.pruning.layers.eval_mode import forget_cached


def device_of(config: TrainConfig) -> torch.device:
    """Return the one device on which a run scores weights and measures accuracy."""
    gpu = config.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


@torch.inference_mode()
def accuracy(
    models: Mapping[str, nn.Module], batches: Iterable[Sequence[Tensor]], classes: int, device: torch.device
) -> tuple[dict[str, float], int]:
    """Measure the accuracy of several models in one pass over a split.

    All batches are evaluated on one device, so that every sample counts exactly once.

    Args:
        models: Networks by name.
        batches: Pairs of images (B, C, H, W) and labels (B,).
        classes: Number of classes.
        device: The device on which to compute.

    Returns:
        Top-1 accuracy in [0, 1] of each model, and the number of samples.
    """
    metrics = {name: MulticlassAccuracy(classes, average="micro").to(device) for name in models}
    modes = {name: model.training for name, model in models.items()}
    for model in models.values():
        forget_cached(model)
        model.to(device).eval()
    samples = 0
    for images, labels in batches:
        inputs, targets = images.to(device), labels.to(device)
        samples += len(inputs)
        for name, model in models.items():
            metrics[name].update(model(inputs), targets)
    for name, model in models.items():
        forget_cached(model)
        model.train(modes[name])
    return {name: float(metric.compute()) for name, metric in metrics.items()}, samples
