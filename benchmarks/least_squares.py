"""The time of a reconstruction over the time of the forward passes and matrix operations that it needs.

``python -m benchmarks.least_squares`` reconstructs the demo's models and ResNet-18 on random images, masked by p70.
A reconstruction needs:

- one forward pass of the dense network, and one of the pruned network;
- for each layer, the products of its inputs with themselves and with its targets, in float32;
- for each row of a layer, a Cholesky factorisation in float64 of k^3 / 3 operations, where k is the number of kept
  weights, or fifty conjugate-gradient steps in float32 if they take less.

The time of an operation follows from the rate at which this machine multiplies matrices of 2048 x 2048.

The second ratio is over the least work possible: half of the symmetric products, factorisations in float32, and 15
conjugate-gradient steps.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from unittest import mock

import timm
import torch
from torch import Tensor, nn

import mmp.pruning.reconstruction.reconstruct
from benchmarks.timing import Claim, table
from mmp.config.choices import choose
from mmp.plan import make_plan
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import make_masks
from mmp.pruning.reconstruction.reconstruct import reconstruct

REPEATS, SIDE = 5, 2048
CASES = {"cnn": ("generic", 1, 28, 512), "vit": ("generic", 1, 28, 512), "resnet18": ("resnet", 3, 32, 512)}


def rate(dtype: torch.dtype) -> float:
    """Return the operations per second of matrix products."""
    left, right = (torch.randn(SIDE, SIDE, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / statistics.median(seconds)


def operations(systems: list[tuple[int, Tensor]], least: bool) -> tuple[float, float]:
    """Return the numbers of float32 and float64 operations that layers need.

    Args:
        systems: For each layer, the number of its input rows, and its mask, (groups, outputs, columns).
        least: Whether to count only the least work: half of the symmetric products, factorisations in float32, and 15
            conjugate-gradient steps.
    """
    single = double = 0.0
    for rows, kept in systems:
        groups, outputs, columns = kept.shape
        single += 2.0 * rows * groups * columns * (columns / (2 if least else 1) + outputs)
        factors = float((kept.sum(2).double() ** 3).sum()) / 3
        steps = (15.0 if least else 50.0) * 2 * groups * outputs * columns**2
        if steps <= factors or least:
            single += min(factors, steps)
        else:
            double += factors
    return single, double


def measure(name: str) -> list[Claim]:
    """Return the claims on one model."""
    ranges, channels, size, images = CASES[name]
    torch.manual_seed(0)
    config = choose("model", name)
    options = dict(config.get("kwargs", {}))
    if name == "vit":
        options |= {"img_size": size, "patch_size": 4}
    model = timm.create_model(config.name, num_classes=10, in_chans=channels, **options).eval()
    weights = prunable_parameters(model, prunable_layers(model))
    scores = {key: weight.detach().abs() for key, weight in weights.items()}
    masks = make_masks(scores, make_plan(model, ranges).sparsities["p70"])
    batches = torch.randn(images, channels, size, size).split(64)
    systems: list[tuple[int, Tensor]] = []
    solve = mmp.pruning.reconstruction.reconstruct.solve_rows

    def noting(moments, mask, *rest):
        systems.append((moments.rows, mask.reshape(moments.yx.shape)))
        return solve(moments, mask, *rest)

    with mock.patch.object(mmp.pruning.reconstruction.reconstruct, "solve_rows", noting):
        reconstruct(copy.deepcopy(model), masks, batches, rows_per_column=0)
    ratios, strict = [], []
    for _ in range(REPEATS):
        forward = _forward(model, batches)
        pruned = copy.deepcopy(model)
        start = time.perf_counter()
        reconstruct(pruned, masks, batches, dense=model, rows_per_column=0)
        seconds = time.perf_counter() - start
        rates = rate(torch.float32), rate(torch.float64)
        for found, least in ((ratios, False), (strict, True)):
            single, double = operations(systems, least)
            found.append(seconds / (2 * forward + single / rates[0] + double / rates[1]))
    label = f"{name}, {images} images of {size}x{size}"
    return [
        Claim(label, ratios, most=1.5, note=f"{seconds:.1f} s"),
        Claim(f"{label}, over the least", strict, most=1.5),
    ]


def _forward(model: nn.Module, batches: tuple[Tensor, ...]) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return time.perf_counter() - start


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    sys.stdout.write(table([claim for name in CASES for claim in measure(name)]) + "\n")
