"""Roles of groups of channels, which ranges name: what a group is in architectures of many families."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import timm
import torch
from channel_networks import build, image_of
from torch import Tensor, nn

from mmp import channel_groups, prunable_layers
from mmp.pruning.channels.costs import positions_of
from mmp.pruning.channels.masks import weights_per_set
from mmp.pruning.channels.roles import group_layers
from mmp.pruning.layers.layer import Layer


def groups_of(network: nn.Module, image: Tensor) -> tuple[Layer, ...]:
    groups, layers = channel_groups(network, image), prunable_layers(network)
    found = group_layers(groups, layers, positions_of(network, image))
    shapes = {layer.name: layer.shape for layer in layers}
    assert [layer.shape for layer in found] == [(len(group), weights_per_set(group, shapes)) for group in groups]
    by_name = {layer.name: layer for layer in layers}
    for layer in found:
        first = by_name[layer.name]
        assert (layer.module, layer.stage, layer.depth) == (first.module, first.stage, first.depth)
    return found


ROLES: dict[str, dict[str, str]] = {
    "resnet": {
        r"conv1\.weight": "conv_inner",
        r"layer\d\.\d\.conv1\.weight": "conv_inner",
        r"layer\d\.0\.conv2\.weight": "stage_width",
    },
    "depthwise and gate": {r"[018]\.weight": "conv_inner", r"7\.reduce\.weight": "conv_inner"},
    "grouped convolution": {r"[04]\.weight": "conv_inner"},
    "vit": {r"blocks\.\d\.attn\.qkv\.weight": "attn_heads", r"blocks\.\d\.mlp\.fc1\.weight": "mlp_hidden"},
    "swin": {r"layers.*\.attn\.qkv\.weight": "attn_heads", r"layers.*\.mlp\.fc1\.weight": "mlp_hidden"},
    "levit": {
        r"stem\.conv[123]\.linear\.weight": "conv_inner",
        r"stem\.conv4\.linear\.weight": "stage_width",
        r"stages\.\d\.downsample\.attn_downsample\.proj\.ln\.linear\.weight": "stage_width",
        r"stages\..*\.(qkv|kv)\.linear\.weight": "attn_heads",
        r"stages\..*\.mlp\.ln1\.linear\.weight": "mlp_hidden",
    },
    "gated MLP": {r"stem\.weight": "conv_inner", r"fc1\.weight": "mlp_hidden"},
    "convnext": {r"stages\.\d\.blocks\.\d\.mlp\.fc1\.weight": "mlp_hidden"},
    "flattened": {r"[03]\.weight": "conv_inner", r"7\.weight": "mlp_hidden"},
    "densenet": {r"features\..*\.weight": "conv_inner"},
}  # fmt: skip

SLOW = ("swin", "levit")


def require_roles(found: tuple[Layer, ...], expected: dict[str, str]) -> None:
    names = {layer.name: layer.role for layer in found}
    for pattern in expected:
        assert any(re.fullmatch(pattern, name) for name in names), f"no group is named {pattern}"
    for name, role in names.items():
        assert [r for pattern, r in expected.items() if re.fullmatch(pattern, name)] == [role], name


@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow if f in SLOW else ()) for f in ROLES])
def test_roles_of_small_networks(family: str) -> None:
    require_roles(groups_of(build(family), image_of(family)), ROLES[family])


def test_a_residual_stage_is_one_group_for_all_of_its_blocks() -> None:
    widths = {g.name: g.shape[0] for g in groups_of(build("resnet"), image_of("resnet")) if g.role == "stage_width"}
    assert widths == {f"layer{n}.0.conv2.weight": width for n, width in zip(range(1, 5), (16, 32, 40, 48), strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "mobilenetv3_small_050",
            {
                r"conv_(stem|head)\.weight": "conv_inner",
                r"blocks\.5\.0\.conv\.weight": "conv_inner",  # before the head; nothing else writes it
                r"blocks\.\d\.\d\.conv_pw\.weight": "conv_inner",
                r"blocks\.\d\.\d\.se\.conv_reduce\.weight": "conv_inner",
                r"blocks\.[124]\.0\.conv_pwl\.weight": "stage_width",
            },
        ),
        (
            "regnety_002",
            {
                r"stem\.conv\.weight": "conv_inner",
                r"s\d\.b\d\.conv1\.conv\.weight": "conv_inner",
                r"s\d\.b\d\.se\.fc1\.weight": "conv_inner",
                r"s\d\.b1\.conv3\.conv\.weight": "stage_width",
            },
        ),
    ],
)
def test_roles_of_networks_with_gates(name: str, expected: dict[str, str]) -> None:
    network = timm.create_model(name, num_classes=5).eval()
    require_roles(groups_of(network, torch.randn(1, 3, 64, 64)), expected)


class Halves(nn.Module):
    """An MLP whose gate is a layer of its own, in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 12)
        self.mlp = nn.ModuleDict({"up": nn.Linear(12, 32), "gate": nn.Linear(12, 32), "down": nn.Linear(32, 12)})
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.mlp["down"](self.mlp["up"](x) * torch.sigmoid(self.mlp["gate"](x))))


class Blocks(nn.Module):
    """Two blocks that write to one width, with convolutions or with linear layers."""

    def __init__(self, layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(layer(8, 24), nn.ReLU()) for _ in range(2))
        self.last = layer(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.a(x) + self.b(x))


def test_the_halves_of_a_gated_mlp_are_one_block_and_sums_of_blocks_are_a_width() -> None:
    width, hidden = groups_of(Halves(), torch.randn(1, 12))
    assert (width.name, width.role, width.shape) == ("stem.weight", "stage_width", (12, 12 + 64 + 32 + 5))
    assert (hidden.name, hidden.role, hidden.shape) == ("mlp.up.weight", "mlp_hidden", (32, 36))
    (linear,) = groups_of(Blocks(nn.Linear), torch.randn(1, 8))
    (conv,) = groups_of(Blocks(lambda i, o: nn.Conv2d(i, o, 1)), torch.randn(1, 8, 4, 4))
    assert linear.role == conv.role == "stage_width"
