"""The time of a step of joint tuning and of fine-tuning: in single precision, in bfloat16, and compiled.

``python -m benchmarks.compiled_steps`` takes steps of a ResNet-20 and an EfficientNet-Lite0 with random weights and
pictures, of each kind in turn, and prints the ratio of each kind to steps in single precision. The time to compile is
not counted. ``python -m benchmarks.compiled_steps ResNet-20`` measures one network.
"""

from __future__ import annotations

import copy
import itertools
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytorch_lightning as pl
import timm
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.cifar_resnet import CifarResNet
from benchmarks.timing import Claim, ratios, table
from mmp.config.schema import RecipeConfig
from mmp.errors import MmpError
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import make_masks
from mmp.pruning.reconstruction.joint import FULL, MIXED, Tuning, reconstruct_jointly
from mmp.runs.memory import keep_freed_memory
from mmp.training.classifier import Classifier

ROUNDS, STEPS, HELD = 3, 20, 32


@dataclass(frozen=True)
class Case:
    """A network and a batch.

    Attributes:
        name: Name of the network.
        build: Returns the network.
        pixels: Height and width of its pictures.
        pictures: Number of pictures in a step.
    """

    name: str
    build: Callable[[], nn.Module]
    pixels: int
    pictures: int

    def images(self) -> torch.Tensor:
        """Return the pictures of a step."""
        return torch.randn(self.pictures, 3, self.pixels, self.pixels)


CASES = (
    Case("ResNet-20", lambda: CifarResNet(20), 32, 128),
    Case("EfficientNet-Lite0", lambda: timm.create_model("tf_efficientnet_lite0"), 224, 32),
)
PLAIN = "single precision"
KINDS = {
    PLAIN: (FULL, False),
    "compiled": (FULL, True),
    "bfloat16": (MIXED, False),
    "bfloat16, compiled": (MIXED, True),
}


def tune(case: Case, dense: nn.Module, precision: str, compiles: bool) -> None:
    """Take the steps of a joint tuning."""
    tuning = Tuning(steps=STEPS, batch_size=case.pictures, precision=precision, compile=compiles)
    images = case.images()
    weights = prunable_parameters(dense, prunable_layers(dense))
    masks = make_masks({name: weight.detach().abs() for name, weight in weights.items()}, dict.fromkeys(weights, 0.5))
    reconstruct_jointly(copy.deepcopy(dense), masks, [images], dense, tuning, [images[:HELD]])


def train(case: Case, dense: nn.Module, precision: str, compiles: bool) -> None:
    """Take the steps of a fine-tuning."""
    images = case.images().repeat(STEPS, 1, 1, 1)
    loader = DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), case.pictures)
    recipe = RecipeConfig(name="steps", epochs=1, learning_rate=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=1, precision=precision, logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=folder, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(Classifier(copy.deepcopy(dense), recipe, 1000, compiles=compiles), loader)


def seconds_of_a_step(steps: Callable[[], None]) -> float:
    """Return the median time between two steps of an optimizer."""
    ends: list[float] = []

    def end(*_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    hook = register_optimizer_step_post_hook(end)
    try:
        steps()
    finally:
        hook.remove()
    return statistics.median(after - before for before, after in itertools.pairwise(ends))


def claims(names: Sequence[str]) -> list[Claim]:
    """Measure all kinds of steps of networks.

    Args:
        names: Names of `CASES`.

    Raises:
        MmpError: if there is no such network.
    """
    if unknown := set(names) - {case.name for case in CASES}:
        raise MmpError(f"{', '.join(unknown)}: no such network; choose from {', '.join(case.name for case in CASES)}")
    found = []
    cases = [case for case in CASES if case.name in names]
    for case, (what, take) in itertools.product(cases, {"joint tuning": tune, "fine-tuning": train}.items()):
        torch.manual_seed(0)
        dense = case.build().eval().to("cuda" if torch.cuda.is_available() else "cpu")
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _, (kind, settings) in itertools.product(range(ROUNDS), KINDS.items()):
            seconds[kind].append(seconds_of_a_step(partial(take, case, dense, *settings)))
        plain = seconds.pop(PLAIN)
        size = f"{case.pictures} pictures of {case.pixels} pixels"
        note = f"{statistics.median(plain):.3f} s for {size} in single precision"
        found += [
            Claim(f"{case.name}, {what}: {kind}", ratios(each, plain), note=note) for kind, each in seconds.items()
        ]
    return found


if __name__ == "__main__":
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    keep_freed_memory()
    sys.stdout.write(f"{table(claims(sys.argv[1:] or [case.name for case in CASES]))}\n")
