"""The time of a step of joint tuning: in single precision, in bfloat16, and compiled.

``python -m benchmarks.tuning_steps`` tunes a ResNet-20 and an EfficientNet-Lite0 with random weights and pictures, for
each kind of steps in turn, and prints the ratio of each to steps in single precision. The time to compile is not
counted.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import sys
import time
from dataclasses import replace

import timm
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.cifar_resnet import CifarResNet
from benchmarks.timing import Claim, ratios, table
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import make_masks
from mmp.pruning.reconstruction.joint import MIXED, Tuning, reconstruct_jointly
from mmp.runs.memory import keep_freed_memory

CASES = {
    "ResNet-20": (lambda: CifarResNet(20), 32, 128),
    "EfficientNet-Lite0": (lambda: timm.create_model("tf_efficientnet_lite0"), 224, 32),
}  # pixels, pictures of a step
PLAIN = "single precision"
KINDS = {
    PLAIN: Tuning(),
    "compiled": Tuning(compile=True),
    "bfloat16": Tuning(precision=MIXED),
    "bfloat16, compiled": Tuning(precision=MIXED, compile=True),
}
ROUNDS, STEPS, HELD = 3, 20, 32


def seconds_of_a_step(dense: nn.Module, pixels: int, tuning: Tuning) -> float:
    """Return the median time between two steps of a tuning."""
    images = torch.randn(tuning.batch_size, 3, pixels, pixels)
    weights = prunable_parameters(dense, prunable_layers(dense))
    masks = make_masks({name: weight.detach().abs() for name, weight in weights.items()}, dict.fromkeys(weights, 0.5))
    ends: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    try:
        reconstruct_jointly(copy.deepcopy(dense), masks, [images], dense, tuning, [images[:HELD]])
    finally:
        hook.remove()
    return statistics.median(after - before for before, after in itertools.pairwise(ends))


def claims() -> list[Claim]:
    """Measure all kinds of steps of both networks."""
    found = []
    for name, (build, pixels, pictures) in CASES.items():
        torch.manual_seed(0)
        dense = build().eval()
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(ROUNDS):
            for kind, settings in KINDS.items():
                tuning = replace(settings, steps=STEPS, batch_size=pictures)
                seconds[kind].append(seconds_of_a_step(dense, pixels, tuning))
        plain = seconds.pop(PLAIN)
        note = f"{statistics.median(plain):.2f} s for {pictures} pictures of {pixels} pixels in single precision"
        found += [Claim(f"{name}: {kind}", ratios(times, plain), note=note) for kind, times in seconds.items()]
    return found


if __name__ == "__main__":
    keep_freed_memory()
    sys.stdout.write(f"{table(claims())}\n")
