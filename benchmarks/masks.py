"""The masks of a grid, three signals by ten strategies, against CSV files and against plain memory access.

``python -m benchmarks.masks`` makes them for ResNet-18 and Swin-Tiny from random scores. Public code of the field goes
through CSV files: one row per weight (layer, index, score), which each configuration reads and sorts again. This route
is timed on small layers with a fiftieth of the weights and scaled by the number of weights, although sorting grows
faster. The lower bound is the time to read all scores once and to write all masks once: in memory that is new from the
system, and in memory that was freed before and kept, as runs keep it (``mmp.runs.memory``).
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
from mmp.plan import make_plan
from mmp.pruning.counts import pruned_count
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import Masks, make_grid
from mmp.runs.memory import keep_freed_memory

MODELS = {"resnet18": ("resnet", 43), "swin_tiny_patch4_window7_224": ("swin", 100)}
SIGNALS = ("magnitude", "gradient", "product")
SHARE, REPEATS = 0.02, 9

Scores = dict[str, Tensor]
Strategies = Mapping[str, Mapping[str, float]]


def grid(scores: Mapping[str, Scores], strategies: Strategies) -> dict[str, dict[str, Masks]]:
    """Return the masks of every configuration."""
    return {signal: make_grid(of_signal, strategies) for signal, of_signal in scores.items()}


def through_csv(scores: Mapping[str, Scores], strategies: Strategies, folder: Path) -> dict[str, dict[str, Masks]]:
    """Return the same masks, made through a CSV file for each signal."""
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
    """Read all scores once, and write as many bytes as the masks have into new arrays."""
    written = []
    for of_signal in scores.values():
        for score in of_signal.values():
            score.numpy().max()
            written.append(np.empty((configurations, score.numel()), dtype=np.uint8))
            written[-1].fill(1)
    return written


def case(name: str) -> tuple[dict[str, Scores], Mapping[str, Mapping[str, float]], str]:
    """Return random scores of a model for every signal, the sparsities of its strategies, and a label."""
    table_name, classes = MODELS[name]
    model = timm.create_model(name, num_classes=classes)
    strategies = make_plan(model, table_name).sparsities
    weights = prunable_parameters(model, prunable_layers(model))
    scores = {signal: {key: torch.randn_like(weight).abs() for key, weight in weights.items()} for signal in SIGNALS}
    total = sum(weight.numel() for weight in weights.values())
    return scores, strategies, f"{name}, {total / 1e6:.1f}M weights, {len(SIGNALS) * len(strategies)} configurations"


def against_csv(name: str) -> Claim:
    """Return the time of the CSV route, from a part of the layers, over the time of the grid."""
    scores, strategies, label = case(name)
    sizes = {key: score.numel() for key, score in scores[SIGNALS[0]].items()}
    part = list[str]()
    for key in sorted(sizes, key=lambda key: sizes[key]):
        if sum(sizes[chosen] for chosen in part) < SHARE * sum(sizes.values()):
            part.append(key)
    scale = sum(sizes.values()) / sum(sizes[key] for key in part)
    of_part = {signal: {key: scores[signal][key] for key in part} for signal in SIGNALS}
    of_strategy = {strategy: {key: by_layer[key] for key in part} for strategy, by_layer in strategies.items()}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        masks = through_csv(of_part, of_strategy, Path(folder))
        seconds = scale * (time.perf_counter() - start)
    if masks != grid(of_part, of_strategy):
        raise RuntimeError("the two routes make different masks")
    (found,) = in_turns({"grid": lambda: grid(scores, strategies)}, REPEATS).values()
    note = f"{seconds:,.0f} s over {np.median(found):.3f} s"
    return Claim(f"{label}: CSV route over ours", [seconds / one for one in found], least=3500, note=note)


def against_memory(name: str, where: str) -> Claim:
    """Return the time of the grid over the time to read the scores and to write the masks once.

    Args:
        name: The model's name.
        where: The kind of memory, for the label.
    """
    scores, strategies, label = case(name)
    routes = {"grid": lambda: grid(scores, strategies), "memory": lambda: memory(scores, len(strategies))}
    found = in_turns(routes, REPEATS)
    note = f"{np.median(found['grid']):.3f} s over {np.median(found['memory']):.3f} s"
    what = f"{label}: ours over reading scores and writing masks once, {where}"
    return Claim(what, ratios(found["grid"], found["memory"]), most=5, note=note)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    torch.manual_seed(0)
    claims = [against_csv(name) for name in MODELS]
    claims += [against_memory(name, "in fresh memory") for name in MODELS]
    keep_freed_memory()
    claims += [against_memory(name, "in memory that a run has kept") for name in MODELS]
    sys.stdout.write(table(claims) + "\n")
