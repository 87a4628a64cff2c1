"""Whether XNNPACK, as ExecuTorch runs it, gains from zeros: 1x1 convolutions, for which it has sparse kernels."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from mmp.config import ModelConfig
from mmp.latency import compare_latency
from mmp.layers import prunable_layers, prunable_parameters
from mmp.masks import MaskEnforcer, Masks, make_masks
from mmp.targets import Exportable, load_target, tried

CHANNELS, DEPTH, SIZE, SECONDS = 256, 8, 32, 10.0


def xnnpack_rows() -> Iterator[list[str]]:
    """Yield engine, sparsity, milliseconds dense and sparse, ratio and quartiles, for one image."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1), nn.ReLU()]
    for _ in range(DEPTH):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU()]
    dense = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)).eval()
    images = torch.randn(1, 3, 2 * SIZE, 2 * SIZE)
    target = load_target("executorch")
    with tempfile.TemporaryDirectory() as folder:

        def source(sparsity: float) -> Exportable:
            model = copy.deepcopy(dense)
            weights = prunable_parameters(model, prunable_layers(model))
            scores = {name: weight.detach().abs() for name, weight in weights.items()}
            masks = make_masks(scores, dict.fromkeys(weights, sparsity)) if sparsity else Masks({})
            MaskEnforcer(weights).set(masks)
            return Exportable(ModelConfig("1x1"), model, masks, (images,), Path(folder))

        engines = {}
        for sparsity in (0.0, 0.9, 0.95):
            path, one = Path(folder) / f"{sparsity}.pte", source(sparsity)
            target.write(one, path)
            engines[sparsity] = target.open(path, one)
            tried(engines[sparsity], one, target)
        for sparsity in (0.9, 0.95):
            found = compare_latency(engines[sparsity], engines[0.0], images, SECONDS)
            yield [
                target.engine,
                f"{100 * sparsity:g}",
                f"{1000 * found.dense_seconds:.2f}",
                f"{1000 * found.seconds:.2f}",
                f"{found.ratio:.2f} ({found.quartiles[0]:.2f} to {found.quartiles[1]:.2f})",
            ]
