"""Masks of whole channels."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from partly import partly_slow
from torch import Tensor, nn

from mmp import MmpError, channel_groups, channel_masks, prunable_layers, prunable_parameters, reconstruct, shrink
from mmp.pruning.channels.masks import pruned_sets, set_scores


def scores_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().abs() for name, p in prunable_parameters(network, prunable_layers(network)).items()}


def mlp(width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def apply(network: nn.Module, masks: dict[str, Tensor]) -> None:
    for name, mask in masks.items():
        network.get_parameter(name).data[~mask] = 0


def test_the_lowest_sums_of_rows_and_columns_go() -> None:
    network = mlp(8)
    (group,) = channel_groups(network, torch.randn(1, 6))
    scores = scores_of(network)
    expected = scores["0.weight"].double().sum(1) + scores["2.weight"].double().sum(0)
    torch.testing.assert_close(set_scores(group, scores), expected)
    masks = channel_masks([group], scores, {"0.weight": 0.5}, multiple=1)
    lowest = expected.argsort()[:4]
    assert not masks["0.weight"][lowest].any()
    assert not masks["2.weight"][:, lowest].any()
    assert masks["0.weight"].sum() == 4 * 6
    assert masks["2.weight"].sum() == 4 * 3


@pytest.mark.parametrize(
    ("width", "sparsity", "multiple", "pruned"),
    [
        (32, 0.5, 16, 16),
        (32, 0.45, 16, 0),  # 18 channels would be left: 32 are the next multiple
        (48, 0.4, 16, 16),
        (24, 0.5, 16, 8),  # from a width that is no multiple to one that is
        (12, 0.9, 16, 0),
        (100, 0.29, 1, 29),
        (8, 1.0, 1, 7),
        (8, 0.0, 1, 0),
        (6, 0.99, 4, 2),
    ],
)
def test_layers_keep_multiples_of_channels(width: int, sparsity: float, multiple: int, pruned: int) -> None:
    (group,) = channel_groups(mlp(width), torch.randn(1, 6))
    assert pruned_sets(group, sparsity, multiple) == pruned


def test_heads_are_whole_and_count_as_multiples() -> None:
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=5
    )
    groups = {group.name: group for group in channel_groups(network, torch.randn(1, 3, 32, 32))}
    heads = groups["blocks.0.attn.qkv.weight"]
    assert pruned_sets(heads, 0.34, 16) == 1
    masks = channel_masks(list(groups.values()), scores_of(network), {heads.name: 0.34})
    kept = masks["blocks.0.attn.proj.weight"].any(0).view(3, 16)
    assert kept.all(1).sum() == kept.any(1).sum() == 2
    assert masks["blocks.0.attn.qkv.weight"].any(1).sum() == 96


def test_masks_contain_each_other() -> None:
    network = timm.create_model(
        "resnet18", layers=[1, 1, 0, 0], channels=[16, 16, 16, 16], stem_width=16, num_classes=5
    )
    groups, scores = channel_groups(network, torch.randn(1, 3, 32, 32)), scores_of(network)
    before = None
    for sparsity in (0.1, 0.3, 0.5, 0.9):
        masks = channel_masks(groups, scores, dict.fromkeys((group.name for group in groups), sparsity), multiple=2)
        assert before is None or all((masks[name] <= before[name]).all() for name in masks)
        before = masks


SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"layers": [1, 1, 0, 0], "channels": [16, 32, 32, 32], "stem_width": 16},
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},
    "mobilenetv3_small_050": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", partly_slow(SMALL, quick=("resnet18", "convnext_atto")))
def test_a_network_under_the_masks_shrinks_after_reconstruction(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, **SMALL[name]).eval()
    images = torch.randn(4, 3, 64, 64)
    groups = channel_groups(network, images[:1])
    masks = channel_masks(groups, scores_of(network), dict.fromkeys((g.name for g in groups), 0.5), multiple=8)
    apply(network, masks)
    reconstruct(network, masks, [images])
    smaller, removal = shrink(network, images)
    assert not removal.kept
    assert {group: removed for group, (removed, _) in removal.removed.items()} == {
        group.name: pruned for group in groups if (pruned := pruned_sets(group, 0.5, 8))
    }
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), network(images), rtol=1e-4, atol=1e-4)


def test_groups_without_a_sparsity_stay() -> None:
    network = mlp()
    masks = channel_masks(channel_groups(network, torch.randn(1, 6)), scores_of(network), {})
    assert all(mask.all() for mask in masks.values())


def test_mistakes_are_one_line() -> None:
    network = mlp()
    groups, scores = channel_groups(network, torch.randn(1, 6)), scores_of(network)
    with pytest.raises(MmpError, match=r"'0.wait' is no group of channels; did you mean '0.weight'"):
        channel_masks(groups, scores, {"0.wait": 0.5})
    with pytest.raises(MmpError, match=r"sparsity 1.5 is outside \[0, 1\]"):
        channel_masks(groups, scores, {"0.weight": 1.5})
    for multiple in (0, 1.5, "16"):
        with pytest.raises(MmpError, match=f"multiple={multiple!r}: must be a whole number of at least 1"):
            channel_masks(groups, scores, {"0.weight": 0.5}, multiple=multiple)
    for wrong in (torch.rand(2, 6), torch.rand(2)):
        with pytest.raises(MmpError, match=r"those of '[02].weight' have the shape .*; pass scores of the shape"):
            channel_masks(groups, {**scores, "0.weight": wrong}, {"0.weight": 0.5})
        with pytest.raises(MmpError, match=r"those of '2.weight' have the shape .*; pass scores of the shape"):
            channel_masks(groups, {**scores, "2.weight": wrong}, {"0.weight": 0.5})
    with pytest.raises(MmpError, match=r"'2.weight' reads channels of '0.weight' but has no scores"):
        channel_masks(groups, {"0.weight": scores["0.weight"]}, {"0.weight": 0.5})
