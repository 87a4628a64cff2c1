"""Parts of ``python -m benchmarks.gpu``: whole channels, found and removed on the CPU and on the GPU."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cifar_resnet import CifarResNet
from benchmarks.gpu_figures import DEVICE, Figure, Setting, exactly
from benchmarks.timing import Claim, in_turns, ratios
from mmp.pruning.channels import shrink as shrinking
from mmp.pruning.channels.confirmed import confirmed_groups
from mmp.pruning.channels.group import ChannelGroup
from mmp.pruning.channels.masks import channel_masks
from mmp.pruning.channels.precision import full_float32
from mmp.pruning.channels.shrink import TOLERANCE, shrink
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import Masks, clear_pruned

_STEPS = 10  # training steps that are timed together


@dataclass(frozen=True)
class Case:
    """A network of random weights.

    Attributes:
        name: Its name.
        build: Returns the network.
        size: Height and width of its images.
    """

    name: str
    build: Callable[[], nn.Module]
    size: int

    def network(self) -> nn.Module:
        """Return the network in eval mode; its norms have random scales, and statistics of random images."""
        torch.manual_seed(0)
        network = self.build().train()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):  # timm starts some with scales of zero, which hide a branch
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(std=0.1)
            network(self.images(4))
        return network.eval()

    def images(self, count: int) -> Tensor:
        """Return random images on the CPU, (count, 3, size, size)."""
        return torch.randn(count, 3, self.size, self.size, generator=torch.Generator().manual_seed(1))


def cases(setting: Setting) -> list[Case]:
    """Return the networks: a small one with residual blocks and batch norms, a larger one, and a transformer."""
    found = [
        Case("ResNet-8", lambda: CifarResNet(8), 32),
        Case("resnet18", lambda: timm.create_model("resnet18", num_classes=100), 224),
        Case("deit_tiny_patch16_224", lambda: timm.create_model("deit_tiny_patch16_224", num_classes=100), 224),
    ]
    return found[:1] if setting.dry else found


def channels(setting: Setting) -> Iterator[Figure]:
    """Compare groups and masks on both devices, and remove half of the channels on the GPU, where TF32 is allowed."""
    for case in cases(setting):
        network, image = case.network(), case.images(1)
        on_cpu = confirmed_groups(network, image)
        with _tf32(), _float64() as repeated:
            network.to(DEVICE)
            on_device = confirmed_groups(network, image.to(DEVICE))
            what = f"{case.name}: groups that are not the same on both devices"
            yield exactly(what, _different(on_cpu, on_device), 0, "groups", f"{len(on_cpu)} groups")
            scores = {name: weight.detach().abs() for name, weight in _weights(network).items()}
            masks, there = half({name: score.cpu() for name, score in scores.items()}, on_cpu), half(scores, on_device)
            differ = sum(not torch.equal(mask, there[name].cpu()) for name, mask in masks.items())
            yield exactly(
                f"{case.name}: masks of the same scores that differ", differ, 0, "layers", f"{len(masks)} layers"
            )
            clear_pruned(_weights(network), masks)
            images = case.images(4 if setting.dry else 32).to(DEVICE)
            smaller, removal = shrink(network, images)
        reasons = "; ".join(removal.kept.values())[:300] or f"{len(removal.removed)} groups are smaller"
        yield exactly(f"{case.name}: groups that keep their unread channels", len(removal.kept), 0, "groups", reasons)
        yield exactly(f"{case.name}: checks that float64 repeated", repeated.call_count, 0, "checks")
        with full_float32(), torch.no_grad():
            logits, found = network(images), smaller(images)
        difference = float((found - logits).abs().max() / logits.abs().max())
        note = f"{_size(smaller):,} of {_size(network):,} parameters are left"
        what, target = f"{case.name}: largest difference of a logit over the largest logit", f"at most {TOLERANCE:g}"
        yield Figure(what, difference, "ratio", target=target, holds=difference <= TOLERANCE, note=note)


def channel_steps(setting: Setting) -> Iterator[Figure]:
    """Time training steps of networks without half of their channels against steps of the dense networks."""
    batch = 2 if setting.dry else 64
    for case in cases(setting):
        network = case.network()
        smaller = half_removed(network, case.images(2))
        images, labels = case.images(batch).to(DEVICE), torch.randint(10, (batch,), device=DEVICE)
        for precision, dtype in (("float32", None), ("bf16", torch.bfloat16)):
            pair = {"dense": network, "smaller": smaller}
            routes = {name: _steps(one, images, labels, dtype) for name, one in pair.items()}
            found = in_turns(routes, 1 if setting.dry else 7)
            ms = {name: 1000 * statistics.median(seconds) / _STEPS for name, seconds in found.items()}
            left = f"{_size(smaller) / _size(network):.0%} of the parameters"
            note = f"{ms['smaller']:.2f} ms over {ms['dense']:.2f} ms; {left}; {batch} images"
            what = f"{case.name}, {precision}: a training step without half of the channels over a dense step"
            yield Figure.of(Claim(what, ratios(found["smaller"], found["dense"]), note=note))


def half(scores: Mapping[str, Tensor], groups: Sequence[ChannelGroup]) -> Masks:
    """Return masks that prune half of the sets of every group."""
    return channel_masks(groups, scores, dict.fromkeys((group.name for group in groups), 0.5), multiple=8)


def half_removed(network: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy of a network without half of the channels of every group."""
    masked = copy.deepcopy(network)
    weights = _weights(masked)
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    clear_pruned(weights, half(scores, confirmed_groups(masked, images[:1])))
    return shrink(masked, images)[0]


def _weights(network: nn.Module) -> Mapping[str, nn.Parameter]:
    return prunable_parameters(network, prunable_layers(network))


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _different(some: Sequence[ChannelGroup], others: Sequence[ChannelGroup]) -> int:
    """Return how many groups one list has that the other has not."""

    def as_values(groups: Sequence[ChannelGroup]) -> list[dict[str, list[list[int]]]]:
        return [{str(part): channels.tolist() for part, channels in group.channels.items()} for group in groups]

    one, other = as_values(some), as_values(others)
    return sum(group not in other for group in one) + sum(group not in one for group in other)


@contextmanager
def _tf32() -> Iterator[None]:
    """Allow TF32 in products, too, as scripts for GPUs often do."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _float64() -> mock._patch[mock.MagicMock]:
    """Count the checks of removals that need float64, because float32 differs too much."""
    own = shrinking._difference_in_float64
    return mock.patch.object(shrinking, "_difference_in_float64", side_effect=own)


def _steps(network: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype | None) -> Callable[[], None]:
    """Return a function that takes `_STEPS` training steps with a copy of a network."""
    model = copy.deepcopy(network).to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def steps() -> None:
        for _ in range(_STEPS):
            optimizer.zero_grad()
            with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

    return steps
