"""Dimensions of attention heads: which networks can lose them, and that they compute the same without them."""

from __future__ import annotations

import copy
import itertools
from functools import cache
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
from channel_networks import build, image_of
from partly import partly_slow
from torch import Tensor, nn
from torch.nn import functional as F

import mmp
from mmp import MmpError, load_shrunk, make_plan, shrink
from mmp.config.schema import ModelConfig
from mmp.export.shrunk_file import save_shrunk
from mmp.models.networks import build_bare
from mmp.pruning.channels.group import ChannelGroup
from mmp.pruning.channels.head_dimensions import HeadDimensions
from mmp.pruning.channels.order import removal_order
from mmp.pruning.channels.removal import tensors_of
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.patterns import Channels
from mmp.pruning.structure import masks_at

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


class Attention(nn.Module):
    """Self-attention over the positions of an image, with two heads.

    Args:
        order: The order in which one layer writes queries, keys and values; in two layers if it has a space.
        keys: Dimensions of a key.
        values: Dimensions of a value.
        normalised: Whether queries and keys have the length 1.
    """

    def __init__(self, order: str = "qkv", keys: int = 8, values: int = 8, normalised: bool = False) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.val_dim, self.normalised = 2, keys, values, normalised
        self.order, self.scale = order, keys**-0.5
        self.embed, self.norm = nn.Conv2d(3, 24, 4, 4), nn.LayerNorm(24)
        self.layers = nn.ModuleList(nn.Linear(24, 2 * sum(self.sizes(part))) for part in order.split())
        self.proj, self.head = nn.Linear(2 * values, 24), nn.Linear(24, 5)

    def sizes(self, part: str) -> list[int]:
        return [self.val_dim if name == "v" else self.key_dim for name in part]

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        normed, named = self.norm(x), {}
        for part, layer in zip(self.order.split(), self.layers, strict=True):
            each = layer(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2).split(self.sizes(part), -1)
            named.update(zip(part, each, strict=True))
        q, k, v = (named[name] for name in "qkv")
        if self.normalised:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.head((x + self.proj(y.transpose(1, 2).flatten(2))).mean(1))


class Fused(Attention):
    """The same with torch's function, which divides by the root of the number of dimensions that it sees."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.layers[0](self.norm(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.proj(y.transpose(1, 2).flatten(2))).mean(1))


def vit(fused: bool = True, **options: object) -> nn.Module:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=5, **SMALL | options)
    for block in network.blocks:
        block.attn.fused_attn = fused
    return network


NETWORKS = {
    "vit": vit,
    "without fused attention": lambda: vit(fused=False),
    "without biases": lambda: vit(qkv_bias=False),
    "fused": Fused,
    "values first": lambda: Attention("vqk"),
    "values between": lambda: Attention("q vk"),
    "keys, then queries": lambda: Attention("kv q"),
    "narrow keys": lambda: Attention(keys=4, values=16),
    "wide keys": lambda: Attention(keys=24, values=16),
    "two thirds": lambda: Attention(keys=8, values=12),
    "swin": lambda: build("swin"),
    "levit": lambda: build("levit"),
}  # fmt: skip
REFUSED = {
    "a norm of queries and keys": lambda: vit(qk_norm=True),
    "lengths of 1": lambda: Attention(normalised=True),
    "lengths of 1, three layers": lambda: Attention("q k v", normalised=True),
    "lengths of 1, values first": lambda: Attention("v qk", normalised=True),
    "lengths of 1, two layers": lambda: Attention("q kv", normalised=True),
    "heads of one dimension": lambda: Attention(keys=1, values=8),
}
SLOW = ("swin", "levit")


@cache
def network_of(name: str) -> nn.Module:
    """Return a network with random biases and norms."""
    torch.manual_seed(0)
    network = {**NETWORKS, **REFUSED}[name]().eval()
    for parameter in network.parameters():
        if parameter.dim() <= 1:
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.3)
    return network


def images_of(name: str, count: int = 1) -> Tensor:
    family = name if name in SLOW else "vit"
    return image_of(family, count)


@cache
def structure(name: str, multiple: int = 1) -> WholeChannels:
    return WholeChannels.of(network_of(name), images_of(name), Channels(multiple), dimensions=True)


def dimensions_of(found: WholeChannels) -> list[HeadDimensions]:
    return [group for group in found.groups if isinstance(group, HeadDimensions)]


def scores_of(found: WholeChannels) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {group.name: torch.rand(sum(map(len, group.strands))).double() for group in found.groups}


def masked(name: str, shares: dict[str, float]) -> nn.Module:
    """Return a copy under random masks of the structure's groups."""
    network, found = copy.deepcopy(network_of(name)), structure(name)
    sparsities = {
        group.name: shares.get(layer.role, 0.0) for group, layer in zip(found.groups, found.layers, strict=True)
    }
    masks = masks_at(found, scores_of(found), sparsities)
    with torch.no_grad():
        for weight, mask in masks.items():
            network.get_parameter(weight).mul_(mask)
    return network


@torch.no_grad()
@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NETWORKS])
def test_a_network_without_dimensions_computes_the_same_as_under_masks(name: str, share: float) -> None:
    found, images = structure(name), images_of(name, 3)
    attentions = 5 if name == "levit" else 4 if name == "swin" else 2 if "vit" in name or "with" in name else 1
    assert len(dimensions_of(found)) == attentions
    assert {layer.role for layer in found.layers} <= {"attn_dims", "mlp_hidden", "conv_inner", "stage_width"}
    network = masked(name, {"attn_dims": share, "mlp_hidden": 0.5})
    smaller, removal = shrink(network, images)
    assert not removal.kept
    for group in dimensions_of(found):
        assert removal.removed[group.name] == (int(share * len(group)), len(group))
    expected = network.double()(images.double())
    assert (smaller.double()(images.double()) - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert (network_of(name)(images) - expected).abs().max() > 1e-3 * expected.abs().max()
    sparsities = {
        layer.name: share if layer.role == "attn_dims" else 0.5 if layer.role == "mlp_hidden" else 0.0
        for layer in found.layers
    }
    assert found.costs.parameters - found.pruned(sparsities) == sum(p.numel() for p in smaller.parameters())


@pytest.mark.parametrize("name", REFUSED)
def test_heads_stay_whole_where_a_dimension_is_not_the_network_s_own(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = WholeChannels.of(network_of(name), images_of(name), Channels(1), dimensions=True)
    assert not dimensions_of(found)
    heads = 3 if "norm" in name else 2
    assert heads in map(len, found.groups)
    assert ("whole heads are pruned" in caplog.text) == (name != "heads of one dimension")


def test_a_removal_that_is_not_exact_is_put_back(caplog: pytest.LogCaptureFixture) -> None:
    network, images = copy.deepcopy(network_of("lengths of 1")), images_of("vit", 3)
    heads = next(group for group in mmp.channel_groups(network, images[:1]) if len(group) == 2)
    dimensions = HeadDimensions.of(heads, 2)
    assert dimensions
    with torch.no_grad():
        for part in dimensions.decisive:
            gone = dimensions.channels[part][:4].flatten()
            tensors_of(network)[part.name].index_fill_(0 if part.side == "out" else 1, gone, 0)
    smaller, removal = shrink(network, images)
    assert list(removal.kept) == [heads.name]
    assert "logits differ" in caplog.text
    assert torch.equal(smaller(images), network(images))


def test_each_head_loses_its_own_dimensions_and_masks_of_rising_fractions_contain_each_other() -> None:
    found = structure("vit")
    scores, shares = scores_of(found), {layer.name: 0.75 for layer in found.layers}
    masks = [masks_at(found, scores, shares, fraction) for fraction in (0.2, 0.5, 1.0)]
    for fewer, more in itertools.pairwise(masks):
        assert all(bool((fewer[name] | ~more[name]).all()) for name in fewer)
    rows = ~masks[-1]["blocks.0.attn.qkv.weight"].any(1).view(3, 3, 16)
    columns = ~masks[-1]["blocks.0.attn.proj.weight"].any(0).view(3, 16)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2], columns)
    assert (rows.sum(2) == 12).all()
    assert not torch.equal(rows[0, 0], rows[0, 1])
    assert not torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7])
def test_budgets_are_met_by_less_than_one_step(budget: float) -> None:
    found = structure("vit", 4)
    plan = make_plan(network_of("vit"), "channels_dims", budget=budget, pattern="channels:4", structure=found)
    for sparsities in plan.sparsities.values():
        removed = found.removed(sparsities)
        least = min(
            found.costs.parameters_left(removed)
            - found.costs.parameters_left([*removed[:n], count + step, *removed[n + 1 :]])
            for n, (count, step) in enumerate(zip(removed, found.steps, strict=True))
            if count + step < len(found.groups[n])
        )
        assert budget <= found.sparsity(sparsities) < budget + least / found.costs.parameters


@pytest.mark.slow
@pytest.mark.parametrize("signal", partly_slow(["magnitude", "obs", "obs_fisher"], quick=("magnitude",)))
def test_prune_takes_dimensions_where_the_ranges_name_them(signal: str) -> None:
    network, images = network_of("vit"), images_of("vit", 8)
    roles = {}
    for ranges in ("channels", "channels_dims"):
        result = mmp.prune(
            network,
            0.5,
            images,
            torch.arange(8) % 5,
            signal=signal,
            pattern="channels:4",
            ranges=ranges,
            strategy="p50",
        )
        roles[ranges] = {layer.role for layer in result.plan.structure.layers}
        smaller = result.smaller()
        assert sum(p.numel() for p in smaller.parameters()) <= 0.5 * sum(p.numel() for p in network.parameters())
        assert torch.allclose(smaller(images), result.model(images), atol=1e-4)
    assert roles == {"channels": {"attn_heads", "mlp_hidden"}, "channels_dims": {"attn_dims", "mlp_hidden"}}


def test_pairs_that_add_least_to_the_scores_of_a_head_go_first() -> None:
    torch.manual_seed(0)
    network = network_of("without biases")
    weight = network.get_parameter("blocks.0.attn.qkv.weight")
    inputs = torch.randn(500, 48) * torch.linspace(0.1, 2, 48)
    pairs = dimensions_of(structure("without biases"))[0].strands[0]
    covariance = (inputs.T @ inputs / len(inputs)).unsqueeze(0)
    order = removal_order(
        pairs, {"blocks.0.attn.qkv.weight": weight}, {"input_covariance": {"blocks.0.attn.qkv.weight": covariance}}
    )
    outputs = (inputs @ weight.T).square().mean(0)
    assert order.argsort().tolist() == (outputs[:16] * outputs[48:64]).argsort().tolist()


def without_half() -> tuple[nn.Module, ModelConfig, mmp.Removal, nn.Module]:
    config = ModelConfig("vit_tiny_patch16_224", num_classes=5, kwargs=SMALL)
    dense = build_bare(config).eval()
    dense.load_state_dict(network_of("vit").state_dict())
    network = masked("vit", {"attn_dims": 0.5})
    return *(shrink(network, images_of("vit", 3))[:1]), config, shrink(network, images_of("vit", 3))[1], network


@pytest.mark.slow
def test_a_shrunk_file_and_an_onnx_file_compute_the_same(tmp_path: Path) -> None:
    smaller, config, removal, network = without_half()
    images = images_of("vit", 3)
    assert removal.attributes["blocks.0.attn"] == {"head_dim": 8, "attn_dim": 24, "scale": 8**-0.5}
    save_shrunk(tmp_path / "x", smaller, config, removal.attributes)
    loaded = load_shrunk(tmp_path / "x")
    assert torch.equal(loaded(images), smaller(images))
    for block in loaded.blocks:
        block.attn.fused_attn = not block.attn.fused_attn
    assert torch.allclose(loaded(images), smaller(images), atol=1e-5)
    torch.onnx.export(smaller, (images,), str(tmp_path / "x.onnx"), dynamo=False, input_names=["x"])
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "x.onnx")).run(None, {"x": images.numpy()})
    assert torch.allclose(torch.from_numpy(found), network(images), atol=1e-4)


def test_a_removal_makes_the_masked_network_smaller_again() -> None:
    smaller, _, removal, network = without_half()
    again = copy.deepcopy(network)
    removal.apply(again)
    assert torch.equal(again(images_of("vit", 3)), smaller(images_of("vit", 3)))


@pytest.mark.slow
def test_groups_that_are_no_heads_have_no_dimensions() -> None:
    for family in ("gated MLP", "resnet", "grouped convolution", "densenet", "split", "flattened"):
        for group in mmp.channel_groups(build(family), image_of(family)):
            assert not any(HeadDimensions.of(group, place) for place in range(3)), group.name


def test_strands_of_other_groups_are_the_groups_themselves() -> None:
    group = ChannelGroup({})
    assert group.strands == (group,)


def test_a_branch_that_starts_at_zero_hides_nothing() -> None:
    network = Attention(normalised=True)
    nn.init.zeros_(network.proj.weight)
    found = WholeChannels.of(network, torch.randn(1, 3, 32, 32), Channels(1), dimensions=True)
    assert dimensions_of(found) == []
    assert len(found.groups) == 1


def test_an_unread_head_beside_unread_dimensions_makes_no_network_larger() -> None:
    network, groups = copy.deepcopy(network_of("vit")), structure("vit").groups
    heads = [group.heads[0] for group in groups if isinstance(group, HeadDimensions)]
    tensors = tensors_of(network)
    for group in dimensions_of(structure("vit")):
        arranged = group.arranged([torch.arange(len(strand)).float() for strand in group.strands])
        for part in group.decisive:
            tensors[part.name].data.index_fill_(
                0 if part.side == "out" else 1, arranged.channels[part][:12].flatten(), 0
            )
    without, _ = shrink(network, images_of("vit", 2))
    for group in heads:
        for part in group.readers:
            tensors[part.name].data[:, group.channels[part][0]] = 0
    fewer, _ = shrink(network, images_of("vit", 2))
    sizes = [sum(p.numel() for p in one.parameters()) for one in (network, without, fewer)]
    assert sizes[2] <= sizes[1] < sizes[0]


class Remembering(Attention):
    """Stores numbers that count no channels: one of every pass, and a probability that equals the scale."""

    def __init__(self) -> None:
        super().__init__(keys=16, values=16)
        self.dropout, self.last, self.calls = 0.25, float("nan"), 0

    def forward(self, x: Tensor) -> Tensor:
        self.last, self.calls = float(x.mean()), self.calls + 1
        return super().forward(x)


def test_only_numbers_of_channels_and_the_scale_change() -> None:
    torch.manual_seed(0)
    network = Remembering().eval()
    network.layers[0].weight.data.view(2, 3, 16, 24)[:, :, :8] = 0
    network.proj.weight.data.view(24, 2, 16)[..., :8] = 0
    smaller, removal = shrink(network, torch.randn(2, 3, 32, 32))
    assert removal.removed == {"layers.0.weight": (8, 16)}
    assert smaller.dropout == 0.25
    assert removal.attributes[""] == {"key_dim": 8, "val_dim": 8, "scale": 8**-0.5}


def test_images_without_contrast_hide_nothing() -> None:
    torch.manual_seed(0)
    network = Attention(normalised=True).eval()
    network.layers[0].weight.data.view(2, 3, 8, 24)[:, :, :4] = 0
    network.proj.weight.data.view(24, 2, 8)[..., :4] = 0
    _, removal = shrink(network, torch.zeros(2, 3, 32, 32))
    assert removal.removed == {}
    assert set(removal.kept) == {"layers.0.weight"}


def test_what_is_narrowed_already_is_refused() -> None:
    smaller, removal = shrink(masked("vit", {"attn_dims": 0.5}), images_of("vit", 2))
    with pytest.raises(MmpError, match=r"has the shape .* but the removal is for the network before it"):
        removal.apply(smaller)
