"""Groups of channels: names that tell them apart, and removals that have been tried."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from channel_networks import build, image_of

from mmp import channel_groups
from mmp.pruning.channels.confirmed import confirmed_groups


def test_groups_with_the_same_first_weight_have_names_of_their_own() -> None:
    groups = channel_groups(build("split"), image_of("split"))
    assert [(group.name, len(group)) for group in groups] == [
        ("first.weight", 16), ("first.weight[16]", 24), ("a.weight", 32)
    ]  # fmt: skip
    assert [group.writer.name for group in groups] == ["first.weight", "first.weight", "a.weight"]


def test_groups_without_which_the_network_does_not_run_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    network, image = build("split").train(), image_of("split")
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        groups = confirmed_groups(network, image)
    assert [group.name for group in groups] == ["a.weight"]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["first.weight", "first.weight[16]"]
    assert all("is not pruned, since half of it cannot be removed" in r.getMessage() for r in caplog.records)
    assert "unread" not in caplog.text
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training


@pytest.mark.parametrize("family", ["depthwise and gate", "vit", pytest.param("swin", marks=pytest.mark.slow)])
def test_all_groups_of_other_networks_are_confirmed(family: str) -> None:
    network, image = build(family), torch.zeros_like(image_of(family))
    assert [g.name for g in confirmed_groups(network, image)] == [g.name for g in channel_groups(network, image)]


@pytest.mark.slow
def test_a_network_that_keeps_tensors_of_its_last_evaluation() -> None:
    network = build("levit")
    network(image_of("levit"))  # with gradients
    assert confirmed_groups(network, image_of("levit"))
