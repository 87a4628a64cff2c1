"""Whole channels: what their removal costs in accuracy. Their latency is in :mod:`benchmarks.channels_latency`.

``python -m benchmarks.channels accuracy cnn vit`` prunes trained models of digits by whole channels of all groups with
one sparsity, without any training afterwards, and prints test accuracies: the mean and the standard deviation over
`SEEDS`.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Sequence

import torch

from benchmarks.reconstruction import configured
from mmp import (
    ChannelGroup,
    MaskEnforcer,
    Masks,
    channel_groups,
    channel_masks,
    prunable_layers,
    prunable_parameters,
    reconstruct,
    shrink,
)
from mmp.data.module import ImageData
from mmp.markdown import table_of
from mmp.pruning.channels.masks import MULTIPLE
from mmp.pruning.signals import PAPER_SIGNALS
from mmp.runs.calibration import Calibration
from mmp.training.dense import dense_model
from mmp.training.evaluation import accuracy, device_of

GONE_TRAINED = (0.3, 0.5, 0.7)  # of the prunable weights
SEEDS = (0, 1, 2)


def accuracies(names: Sequence[str]) -> str:
    """Return the table of several models that are trained on digits."""
    rows = []
    for name in names or ("cnn", "vit"):
        found = [accuracies_of(name, seed) for seed in SEEDS]
        rows += [[name, *key, *map(spread_of, zip(*(one[key] for one in found), strict=True))] for key in found[0]]
    return table_of(["model", "signal", "weights gone %", "dense %", "masked %", "re-solved %"], rows)


def accuracies_of(name: str, seed: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Return test accuracies in percent: dense, masked, and re-solved; by signal and share of weights."""
    config = configured([f"model={name}", "data=digits", f"seed={seed}"])
    data, device = ImageData(config.data, seed), device_of(config)
    dense, _ = dense_model(config, data)
    layers = prunable_layers(dense)
    calibration = Calibration.of(config, dense, layers, data, device)
    images = calibration.images(config.reconstruct.images)
    groups = channel_groups(dense, images[0][:1])
    found = {}
    for signal in PAPER_SIGNALS:
        scores, _ = calibration.scores(signal)
        for gone in GONE_TRAINED:
            masks = masks_for(groups, scores, gone, multiple=1)
            masked, solved = copy.deepcopy(dense), copy.deepcopy(dense)
            MaskEnforcer(prunable_parameters(masked, layers)).set(masks)
            reconstruct(solved, masks, images, config.reconstruct.ridge, dense)
            smaller, _ = shrink(solved, images[0][:8])
            models = {"dense": dense, "masked": masked, "re-solved": smaller}
            measured, _ = accuracy(models, data.test_dataloader(), config.data.classes, device)
            found[signal.name, f"{100 * gone:.0f}"] = tuple(100 * measured[key] for key in models)
    return found


def spread_of(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation of several values."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def masks_for(
    groups: Sequence[ChannelGroup], scores: dict[str, torch.Tensor], gone: float, multiple: int = MULTIPLE
) -> Masks:
    """Return masks with the lowest common sparsity of all groups at which a share of the weights is pruned."""
    names = [group.name for group in groups]
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        masks = channel_masks(groups, scores, dict.fromkeys(names, middle), multiple)
        low, high = (middle, high) if masks.sparsity < gone else (low, middle)
    return channel_masks(groups, scores, dict.fromkeys(names, high), multiple)


if __name__ == "__main__":
    command, *chosen = sys.argv[1:] or ["accuracy"]
    print({"accuracy": accuracies}[command](chosen))  # noqa: T201
