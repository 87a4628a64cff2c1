"""What a network costs without some of its channels, against the network that ``shrink`` makes."""

from __future__ import annotations

import random

import pytest
import torch
from channel_networks import FAMILIES, build, image_of
from torch import nn

from mmp import shrink
from mmp.pruning.channels.costs import Costs, positions_of
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.patterns import Channels

MULTIPLES = {"resnet": 8, "vit": 16, "densenet": 16, "gated MLP": 16, "convnext": 8}
SLOW = {"levit", "swin", "convnext", "densenet"}


def measured(network: nn.Module, family: str) -> tuple[int, int, int]:
    """Return the parameters, multiply-adds and bytes of a network, counted without the code of ``Costs``."""
    parameters = dict(network.named_parameters())
    stored = {id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()}
    with torch.no_grad():
        positions = positions_of(network, image_of(family))
    return (
        sum(parameter.numel() for parameter in parameters.values()),
        sum(parameters[name].numel() * count for name, count in positions.items()),
        sum(tensor.numel() * tensor.element_size() for tensor in stored.values()),
    )


def left(costs: Costs, removed: list[int]) -> tuple[int, int, int]:
    return costs.parameters_left(removed), costs.multiply_adds_left(removed), costs.bytes_left(removed)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow if f in SLOW else ()) for f in FAMILIES])
def test_costs_are_those_of_the_smaller_network(family: str, seed: int) -> None:
    network, images = build(family), image_of(family, 2)
    multiple = MULTIPLES.get(family, 1)
    structure = WholeChannels.of(network, images[:1], Channels(multiple))
    assert measured(network, family) == left(structure.costs, [0] * len(structure.groups))
    chance = random.Random(seed)
    sparsities = {group.name: chance.random() for group in structure.groups}
    torch.manual_seed(seed)
    scores = {group.name: torch.rand(len(group)) for group in structure.groups}
    removed = structure.removed(sparsities)
    assert any(removed)

    for name, mask in structure.grid(scores, {"": sparsities})[""].items():
        network.get_parameter(name).data[~mask] = 0
    smaller, removal = shrink(network, images)

    assert not removal.kept
    expected = {group.name: count for group, count in zip(structure.groups, removed, strict=True) if count}
    assert {name: count for name, (count, _) in removal.removed.items()} == expected
    assert measured(smaller, family) == left(structure.costs, removed)
    for name, parameter in network.named_parameters():
        now = smaller.get_parameter(name).shape
        if now and now[0] != len(parameter) and name.endswith("weight"):
            assert now[0] % multiple == 0


def test_multiply_adds_of_a_known_network() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    image = torch.randn(1, 3, 10, 10)
    assert positions_of(network, image) == {"0.weight": 100, "2.weight": 64, "5.weight": 1}
    costs = WholeChannels.of(network, image, Channels(1)).costs
    assert costs.multiply_adds == 100 * 27 * 4 + 64 * 18 * 8 + 40
    assert costs.parameters == 27 * 4 + 4 + 18 * 8 + 8 + 40 + 5
    assert costs.bytes == 4 * costs.parameters


def test_a_shared_weight_is_counted_once_as_parameters_and_at_each_use_as_multiply_adds() -> None:
    network = build("tied convolutions")
    positions = positions_of(network, image_of("tied convolutions"))
    assert positions["a.weight"] == 2 * 16 * 16
    assert measured(network, "tied convolutions")[0] == sum(p.numel() for p in network.parameters())
