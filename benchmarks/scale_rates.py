"""The rates of a network on a machine: seconds of a picture forward and in training, of masks and of re-solving."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.channel_networks import multiply_adds_of
from benchmarks.pruning_runs import configured
from benchmarks.tables import threads_of
from mmp.export.measure import processor
from mmp.models.networks import build_model
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import make_masks
from mmp.pruning.reconstruction.reconstruct import reconstruct
from mmp.pruning.signals import Magnitude, score

CLASSES = 1000
LEAST_SECONDS = 3.0  # of a measurement


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        image_size: Height and width of its pictures.
        channels: Channels of its pictures.
        resolved: Two numbers of pictures of a re-solving, on the CPU; a GPU takes eight times as many.
        batch: Pictures of a batch on the CPU; a GPU takes eight times as many.
    """

    image_size: int
    channels: int
    resolved: tuple[int, int]
    batch: int


NETWORKS = {
    "swin_tiny_patch4_window7_224": Subject(224, 3, (8, 32), 16),
    "resnet50": Subject(224, 3, (8, 32), 16),
    "cnn": Subject(16, 1, (60, 180), 64),
}


@dataclass(frozen=True)
class Rates:
    """The rates of a network on a device.

    Attributes:
        network: Name of the network.
        image_size: Height and width of its pictures.
        operations: Multiply-adds of a picture forward.
        where: The device, its threads and its precision.
        forward: Seconds of a picture in a forward pass.
        training: Seconds of a picture in a training step.
        masks: Seconds of the masks of one configuration.
        few, most: Pictures of two re-solvings, and their seconds.
    """

    network: str
    image_size: int
    operations: int
    where: str
    forward: float
    training: float
    masks: float
    few: tuple[int, float]
    most: tuple[int, float]

    def resolving(self, images: int) -> float:
        """Return the seconds of a re-solving: a part that does not depend on the number of pictures, and one that does.

        Args:
            images: Number of pictures.
        """
        each = max(0.0, (self.most[1] - self.few[1]) / (self.most[0] - self.few[0]))
        return self.few[1] + each * (images - self.few[0])


def measured_rates(name: str) -> Rates:
    """Measure the rates of a network with random weights, on a GPU in bfloat16 if there is one.

    Args:
        name: A name in `NETWORKS`.
    """
    subject, gpu = NETWORKS[name], torch.cuda.is_available()
    device, times = ("cuda", 8) if gpu else ("cpu", 1)
    torch.manual_seed(0)
    network = _network(name).to(device)
    images = torch.randn(subject.batch * times, subject.channels, *[subject.image_size] * 2, device=device)
    parameters = prunable_parameters(network, prunable_layers(network))
    scores = score(Magnitude(), parameters, {})
    masks = make_masks(scores, dict.fromkeys(scores, 0.8))
    mixed = torch.autocast("cuda", torch.bfloat16) if gpu else nullcontext()
    with mixed:
        forward = seconds_of(lambda: _forward(network, images)) / len(images)
        training = seconds_of(_training(network, images)) / len(images)
    resolved = []
    for count in (number * times for number in subject.resolved):
        pictures = torch.randn(count, *images.shape[1:], device=device).split(64)
        solving = _network(name).to(device)
        resolved.append((count, once(lambda: reconstruct(solving, masks, pictures))))  # noqa: B023 (called at once)
    threads = f"{threads_of(torch.get_num_threads())}, float32"
    return Rates(
        network=name,
        image_size=subject.image_size,
        operations=multiply_adds_of(network.eval(), images),
        where=f"{torch.cuda.get_device_name()}, bfloat16" if gpu else f"{processor()}, {threads}",
        forward=forward,
        training=training,
        masks=seconds_of(lambda: make_masks(scores, dict.fromkeys(scores, 0.8))),
        few=resolved[0],
        most=resolved[1],
    )


def seconds_of(action: Callable[[], object]) -> float:
    """Return the mean seconds of an action, after one that is not timed.

    Args:
        action: What to repeat for `LEAST_SECONDS`.
    """
    once(action)
    count, spent = 0, 0.0
    while spent < LEAST_SECONDS:
        count, spent = count + 1, spent + once(action)
    return spent / count


def once(action: Callable[[], object]) -> float:
    """Return the seconds of an action, until the GPU is done with it."""
    begun = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _network(name: str) -> nn.Module:
    if name != "cnn":
        return timm.create_model(name, num_classes=CLASSES)
    return build_model(configured(["model=cnn", "data=digits"]).model)


@torch.no_grad()
def _forward(network: nn.Module, images: Tensor) -> None:
    network.eval()(images)


def _training(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """Return a training step of a network."""
    labels = torch.randint(10, (len(images),), device=images.device)
    optimizer = torch.optim.AdamW(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network.train()(images), labels).backward()
        optimizer.step()

    return step
