"""The time of a training step that keeps pruned weights at zero, over the time of a dense step.

``python -m benchmarks.enforcement`` times steps of ResNet-18 and of the demo's CNN at 80 % sparsity with AdamW, in
turns: without masks, with our enforcer, with torch.nn.utils.prune, and with Lightning's ModelPruning. It uses a GPU if
there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import timm
import torch
from pytorch_lightning.callbacks import ModelPruning
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from benchmarks.timing import Claim, in_turns, ratios, table
from mmp.config.choices import choose
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import MaskEnforcer, make_masks
from mmp.runs.memory import keep_freed_memory

SPARSITY, REPEATS, STEPS = 0.8, 15, 4
CASES = (("resnet18", 3, 32, 128), ("resnet18", 3, 64, 128), ("cnn", 1, 28, 128))  # model, channels, image size, batch

Hold = Callable[[nn.Module, torch.optim.Optimizer], None]


def model_of(name: str, channels: int) -> nn.Module:
    """Return a model with random weights; they are the same in every call."""
    torch.manual_seed(0)
    if name == "cnn":
        config = choose("model", name)
        return timm.create_model(config.name, num_classes=10, in_chans=channels, **config.kwargs)
    return timm.create_model(name, num_classes=43, in_chans=channels)


def ours(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Apply magnitude masks with mmp: after each optimizer step, pruned weights are set to zero."""
    weights = prunable_parameters(model, prunable_layers(model))
    masks = make_masks(
        {name: weight.detach().abs() for name, weight in weights.items()}, dict.fromkeys(weights, SPARSITY)
    )
    enforcer = MaskEnforcer(weights)
    enforcer.set(masks, [optimizer])
    enforcer.attach(optimizer)


def torch_prune(model: nn.Module, _: torch.optim.Optimizer) -> None:
    """Apply them with torch.nn.utils.prune: each forward pass multiplies the weights by their masks."""
    for layer in prunable_layers(model):
        module, name = layer.name.rsplit(".", 1)
        prune.l1_unstructured(model.get_submodule(module), name, SPARSITY)


def lightning(model: nn.Module, _: torch.optim.Optimizer) -> None:
    """Apply them with Lightning's ModelPruning, which uses torch.nn.utils.prune."""
    parameters = [(model.get_submodule(layer.name.rsplit(".", 1)[0]), "weight") for layer in prunable_layers(model)]
    callback = ModelPruning("l1_unstructured", parameters, amount=SPARSITY, use_global_unstructured=False)
    callback.setup(None, model, "fit")  # type: ignore[arg-type]  # it does not read the trainer
    callback.apply_pruning(SPARSITY)


def step_of(name: str, channels: int, size: int, batch: int, hold: Hold | None) -> Callable[[], None]:
    """Return a function that takes `STEPS` steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model_of(name, channels).to(device)
    # torch.nn.utils.prune replaces parameters, so it comes before the optimizer; our enforcer needs the optimizer.
    if hold not in (None, ours):
        hold(model, None)  # type: ignore[misc, arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    if hold is ours:
        hold(model, optimizer)
    images = torch.randn(batch, channels, size, size, device=device)
    labels = torch.randint(10, (batch,), device=device)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

    return steps


def measure(name: str, channels: int, size: int, batch: int) -> list[Claim]:
    """Return the claims on one case."""
    holds: dict[str, Hold | None] = {
        "dense": None,
        "mmp": ours,
        "torch.nn.utils.prune": torch_prune,
        "ModelPruning": lightning,
    }
    found = in_turns({key: step_of(name, channels, size, batch, hold) for key, hold in holds.items()}, REPEATS)
    case = f"{name}, {batch} images of {size}x{size}"
    return [
        Claim(f"{case}: {key}", ratios(found[key], found["dense"]), most=1.01 if key == "mmp" else None)
        for key in holds
        if key != "dense"
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    keep_freed_memory()  # as runs do
    sys.stdout.write(table([claim for case in CASES for claim in measure(*case)]) + "\n")
