"""The time of scoring over the time of plain forward and backward passes on the same calibration images.

``python -m benchmarks.scores`` times the three normalised signals, which share one pass, and the criterion GraSP. Each
is timed in turns with a loop that only computes the gradients. The models are the demo's CNN and ViT, and ResNet-18 at
32x32. The benchmark uses a GPU if there is one.

A plain pass multiplies matrices three times per layer. GraSP first computes the gradient that the Hessian is multiplied
by (three products), then the derivative of each batch's gradient in that direction (six products). That is three plain
passes if the second step can use the kept graphs of the first step, as in all cases here, and else four.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import Claim, in_turns, ratios, table
from mmp.config.choices import choose
from mmp.config.schema import ModelConfig
from mmp.models.networks import build_model
from mmp.pruning.calibration_statistics import Batches, collect
from mmp.pruning.criteria import criterion
from mmp.pruning.layers.eval_mode import evaluating
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.signals import PAPER_SIGNALS, score
from mmp.runs.memory import keep_freed_memory

MODELS = {"cnn": 128, "vit": 128, "resnet18": 64}  # images in a batch
SAMPLES = {"three_signals": 1024, "grasp": 256}
REPEATS = 5


def plain(model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches) -> None:
    """Compute the gradients of every batch."""
    with evaluating(model):
        for inputs, targets in batches:
            torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(parameters.values()))


def three_signals(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches
) -> list[dict[str, Tensor]]:
    """Return the scores of the paper's three signals."""
    needs = frozenset[str]().union(*(signal.needs for signal in PAPER_SIGNALS))
    statistics = collect(model, parameters, batches, F.cross_entropy, needs)
    return [score(signal, parameters, statistics, normalised=True) for signal in PAPER_SIGNALS]


def grasp(model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches) -> dict[str, Tensor]:
    """Return GraSP's scores."""
    scorer = criterion("grasp")
    return score(scorer, parameters, collect(model, parameters, batches, F.cross_entropy, scorer.needs, 200.0))


def measure(name: str, size: int) -> list[Claim]:
    """Return the claims on one model, with batches of this size."""
    config = OmegaConf.to_object(
        OmegaConf.merge(ModelConfig, choose("model", name), {"in_chans": 3, "num_classes": 10})
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(config).to(device)
    parameters = prunable_parameters(model, prunable_layers(model))
    most = max(SAMPLES.values())
    images = torch.randn(most, 3, 32, 32, device=device)
    labels = torch.randint(10, (most,), device=device)
    claims = []
    for what, route, most in (("three signals", three_signals, 1.05), ("GraSP", grasp, 3.5)):
        samples = SAMPLES[route.__name__]
        batches = list(zip(images[:samples].split(size), labels[:samples].split(size), strict=True))
        routes = {"plain": plain, "scores": route}
        found = in_turns({key: partial(one, model, parameters, batches) for key, one in routes.items()}, REPEATS)
        label = f"{name}, {samples} images in batches of {size}: {what} over plain passes"
        claims.append(Claim(label, ratios(found["scores"], found["plain"]), most=most))
    return claims


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    keep_freed_memory()  # as runs do
    torch.manual_seed(0)
    sys.stdout.write(table([claim for name, size in MODELS.items() for claim in measure(name, size)]) + "\n")
