"""Masks of a whole grid, three signals by ten strategies: against a route through CSV files, and against the memory.

``python -m benchmarks.masks`` makes them for ResNet-18 and Swin-Tiny, of random scores. The CSV route is that of public
code of the field: a row a weight (layer, index, score), read and sorted anew for each configuration. It is timed on
small layers that hold a fiftieth of the weights, and scaled by their number, though sorting grows faster than that. The
floor is reading all scores once and writing all masks once, where nothing was written before.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor

from benchmarks.timing import Claim, in_turns, ratios, table
from mmp.keep import pruned_count
from mmp.layers import prunable_layers, prunable_parameters
from mmp.masks import Masks, make_grid
from mmp.plan import make_plan

MODELS = {"resnet18": ("resnet", 43), "swin_tiny_patch4_window7_224": ("swin", 100)}
SIGNALS = ("magnitude", "gradient", "product")
SHARE, REPEATS = 0.02, 9

Scores = dict[str, Tensor]
Strategies = Mapping[str, Mapping[str, float]]


def grid(scores: Mapping[str, Scores], strategies: Strategies) -> dict[str, dict[str, Masks]]:
    """Return the masks of every configuration."""
    return {signal: make_grid(of_signal, strategies) for signal, of_signal in scores.items()}


def through_csv(scores: Mapping[str, Scores], strategies: Strategies, folder: Path) -> dict[str, dict[str, Masks]]:
    """Return the same by way of a CSV file for each signal."""
    masks: dict[str, dict[str, Masks]] = {}
    for signal, of_signal in scores.items():
        path = folder / f"{signal}.csv"
        with path.open("w", newline="", encoding="ascii") as file:
            writer = csv.writer(file)
            for name, score in of_signal.items():
                writer.writerows((name, index, value) for index, value in enumerate(score.flatten().tolist()))
        masks[signal] = {}
        for strategy, sparsities in strategies.items():
            kept = {}
            with path.open(newline="", encoding="ascii") as file:
                for name, rows in groupby(csv.reader(file), itemgetter(0)):
                    ordered = sorted((float(value), int(index)) for _, index, value in rows)
                    mask = torch.ones(len(ordered), dtype=torch.bool)
                    mask[[index for _, index in ordered[: pruned_count(sparsities[name], len(ordered))]]] = False
                    kept[name] = mask.view(of_signal[name].shape)
            masks[signal][strategy] = Masks(kept)
    return masks


def memory(scores: Mapping[str, Scores], configurations: int) -> list[np.ndarray]:
    """Read scores once, and write as many bytes as masks have once, where nothing was written before."""
    written = []
    for of_signal in scores.values():
        for score in of_signal.values():
            score.numpy().max()
            written.append(np.empty((configurations, score.numel()), dtype=np.uint8))
            written[-1].fill(1)
    return written


def measure(name: str) -> list[Claim]:
    """Return what is measured on a model."""
    table_name, classes = MODELS[name]
    model = timm.create_model(name, num_classes=classes)
    strategies = make_plan(model, table_name).sparsities
    parameters = prunable_parameters(model, prunable_layers(model))
    scores = {signal: {key: torch.randn_like(weight).abs() for key, weight in parameters.items()} for signal in SIGNALS}
    total = sum(weight.numel() for weight in parameters.values())
    part = dict[str, Tensor]()
    for key, weight in sorted(parameters.items(), key=lambda item: item[1].numel()):
        if sum(value.numel() for value in part.values()) < SHARE * total:
            part[key] = weight
    scale = total / sum(value.numel() for value in part.values())
    of_part = {signal: {key: scores[signal][key] for key in part} for signal in SIGNALS}
    of_strategy = {strategy: {key: by_layer[key] for key in part} for strategy, by_layer in strategies.items()}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        masks = through_csv(of_part, of_strategy, Path(folder))
        csv_seconds = scale * (time.perf_counter() - start)
    if masks != grid(of_part, of_strategy):
        raise RuntimeError("the two routes make different masks")
    found = in_turns(
        {"grid": lambda: grid(scores, strategies), "memory": lambda: memory(scores, len(strategies))}, REPEATS
    )
    label = f"{name}, {total / 1e6:.1f}M weights, {len(SIGNALS) * len(strategies)} configurations"
    return [
        Claim(
            f"{label}: CSV route over ours",
            [csv_seconds / one for one in found["grid"]],
            least=3000,
            note=f"{csv_seconds:,.0f} s over {np.median(found['grid']):.3f} s",
        ),
        Claim(
            f"{label}: ours over reading scores and writing masks once", ratios(found["grid"], found["memory"]), most=5
        ),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    torch.manual_seed(0)
    sys.stdout.write(table([claim for name in MODELS for claim in measure(name)]) + "\n")
