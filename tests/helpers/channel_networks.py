"""Tiny networks of many families, whose channels are coupled in different ways."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Gated(nn.Module):
    """An MLP on an image whose hidden units are products of two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 4)
        self.fc1, self.fc2 = nn.Linear(24, 64), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(self.stem(x).flatten(2).transpose(1, 2)).chunk(2, dim=-1)
        return self.fc2((value * F.silu(gate)).mean(1))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Tied(nn.Module):
    """Two convolutions with one weight, between convolutions of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.a, self.b = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.b.weight = self.a.weight
        self.between, self.last = nn.Conv2d(32, 48, 1), nn.Conv2d(48, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.stem(x))))
        x = F.relu(self.b(F.relu(self.last(F.relu(self.between(x))))))
        return self.head(x.mean((2, 3)))


class Split(nn.Module):
    """A convolution whose outputs are divided between two others, as in Res2Net."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 40, 3)
        self.a, self.b = nn.Conv2d(16, 32, 3), nn.Conv2d(24, 32, 3)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(self.first(x)).split((16, 24), dim=1)
        return self.head(F.relu(self.a(one) + self.b(other)).mean((2, 3)))


def chain(*modules: nn.Module) -> nn.Sequential:
    """Return a network that ends with a linear layer over the mean of its positions."""
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))


def inverted() -> nn.Sequential:
    """Return an expansion, a depthwise convolution and a gate."""
    return chain(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 48, 1, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        Gate(48),
        nn.Conv2d(48, 24, 1),
        nn.ReLU(),
    )


def grouped() -> nn.Sequential:
    """Return a convolution with groups between two others."""
    return chain(
        nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3, groups=6), nn.ReLU(), nn.Conv2d(48, 32, 1), nn.ReLU()
    )


def flattened() -> nn.Sequential:
    """Return a network like VGG: its classifier reads every position of the last channels."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * 48, 64), nn.ReLU(), nn.Linear(64, 5),
    )  # fmt: skip


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **options)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "gated MLP": (Gated, 16),
    "depthwise and gate": (inverted, 16),
    "grouped convolution": (grouped, 16),
    "flattened": (flattened, 16),
    "tied convolutions": (Tied, 16),
    "split": (Split, 16),
    "resnet": (_timm("resnet18", layers=[1, 2, 1, 1], channels=[16, 32, 40, 48], stem_width=16), 32),
    "densenet": (_timm("densenet121", growth_rate=16, block_config=(2, 2)), 32),
    "convnext": (_timm("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)), 32),
    "vit": (_timm("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3), 32),
    "swin": (
        _timm(
            "swin_tiny_patch4_window7_224",
            img_size=64, window_size=4, embed_dim=32, depths=(2, 2), num_heads=(2, 4)
        ),
        64,
    ),
    "levit": (
        _timm("levit_128s", img_size=128, embed_dim=(16, 24, 32), key_dim=8, num_heads=(2, 3, 4), depth=(1, 1, 1)),
        128,
    ),
}  # fmt: skip


def image_of(family: str, count: int = 1) -> Tensor:
    """Return random images of a family's size, (count, 3, H, W)."""
    return torch.randn(count, 3, *[FAMILIES[family][1]] * 2, generator=torch.Generator().manual_seed(1))


def build(family: str) -> nn.Module:
    """Return a network of a family in eval mode; the same each time."""
    torch.manual_seed(0)
    network = FAMILIES[family][0]().eval()
    with torch.no_grad():
        network(image_of(family))  # initialises lazy layers
    for parameter in network.parameters():
        if parameter.dim() <= 1:
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    return network
