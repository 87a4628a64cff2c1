"""Whole channels: what their removal saves in parameters and in latency, and what it costs in accuracy.

``python -m benchmarks.channels latency resnet18 deit_small_patch16_224`` prunes half and 70 % of the prunable weights
of timm models with random weights, by whole channels of all groups with one sparsity, and prints a row for each.
Without names it takes `MODELS`. Latency is that of one image and one thread, as a share of the dense network's in the
same engine.
``python -m benchmarks.channels accuracy cnn vit`` prunes trained models of digits in the same way, without any training
afterwards, and prints test accuracies: the mean and the standard deviation over `SEEDS`.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import nn

from benchmarks.reconstruction import configured
from benchmarks.timing import machine
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
from mmp.config.schema import ModelConfig
from mmp.data.module import ImageData
from mmp.export.latency import compare_latency
from mmp.export.targets import Engine, Exportable, load_target
from mmp.markdown import table_of
from mmp.pruning.channels.masks import MULTIPLE
from mmp.pruning.signals import PAPER_SIGNALS
from mmp.runs.calibration import Calibration
from mmp.training.dense import dense_model
from mmp.training.evaluation import accuracy, device_of

MODELS = (
    "resnet18",
    "resnet50",
    "deit_small_patch16_224",
    "convnext_tiny",
    "regnety_008",
    "mobilenetv3_large_100",
)
GONE = (0.5, 0.7)  # of the prunable weights, for latency
GONE_TRAINED = (0.3, 0.5, 0.7)  # for accuracy
SEEDS = (0, 1, 2)
TARGETS = ("onnx", "openvino")
SECONDS = 5.0


def latency(names: Sequence[str]) -> str:
    """Return the table of several models."""
    torch.set_num_threads(1)
    rows = [row for name in names or MODELS for row in rows_of(name)]
    headings = ["model", "seconds to find groups", "groups", "parameters gone %", *TARGETS, "kept back"]
    return table_of(headings, rows) + f"\n\n{machine()}"


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


def rows_of(name: str) -> list[list[str]]:
    """Return the rows of one model."""
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    images = torch.randn(2, 3, 224, 224)
    start = time.perf_counter()
    groups = channel_groups(network, images[:1])
    seconds = time.perf_counter() - start
    weights = prunable_parameters(network, prunable_layers(network))
    scores = {key: weight.detach().abs() for key, weight in weights.items()}
    total = sum(parameter.numel() for parameter in network.parameters())
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        dense = engines(network, images, Path(scratch) / "dense")
        for gone in GONE:
            pruned = timm.create_model(name).eval()
            pruned.load_state_dict(network.state_dict())
            masks = masks_for(groups, scores, gone)
            enforcer = MaskEnforcer(prunable_parameters(pruned, prunable_layers(pruned)))
            enforcer.set(masks)
            smaller, removal = shrink(pruned, images)
            left = sum(parameter.numel() for parameter in smaller.parameters())
            ratios = [
                compare_latency(fast, slow, images[:1], SECONDS)
                for fast, slow in zip(engines(smaller, images, Path(scratch) / str(gone)), dense, strict=True)
            ]
            cells = [f"{one.ratio:.2f} ({one.quartiles[0]:.2f} to {one.quartiles[1]:.2f})" for one in ratios]
            share = f"{100 * (1 - left / total):.1f}"
            rows.append([name, f"{seconds:.0f}", str(len(groups)), share, *cells, str(len(removal.kept))])
            sys.stderr.write(" | ".join(rows[-1]) + "\n")
    return rows


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


def engines(network: nn.Module, images: torch.Tensor, scratch: Path) -> list[Engine]:
    """Return the network in each engine."""
    scratch.mkdir()
    config = ModelConfig(name="network", num_classes=1000)
    source = Exportable(config, network, Masks({}), [images], scratch)
    found = []
    for name in TARGETS:
        target = load_target(name)
        path = scratch / target.files[0]
        target.write(source, path)
        found.append(target.open(path, source))
    return found


if __name__ == "__main__":
    command, *chosen = sys.argv[1:] or ["latency"]
    print({"latency": latency, "accuracy": accuracies}[command](chosen))  # noqa: T201
