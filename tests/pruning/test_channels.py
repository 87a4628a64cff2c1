"""Channels that can only go together, and networks without the channels that nothing reads."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmp import MmpError, shrink
from mmp.pruning.channels import shrink as removal_module
from mmp.pruning.channels.coupling import channel_groups
from mmp.pruning.channels.group import ChannelGroup, Part
from mmp.pruning.channels.shrink import remove
from mmp.pruning.channels.unread import unread_sets


class Gated(nn.Module):
    """A linear layer whose halves are multiplied, as in transformers with gated MLPs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 24), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(value * F.silu(gate))


class Attention(nn.Module):
    """Self-attention over the positions of an image, with a number of heads in an attribute."""

    def __init__(self, heads: int = 4, width: int = 24) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).view(len(x), x.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.proj(y.transpose(1, 2).flatten(2))).mean(1))


class Interleaved(Attention):
    """Self-attention whose heads take every fourth channel."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).view(len(x), x.shape[1], 3, -1, self.heads).permute(2, 0, 4, 1, 3)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.proj(y.permute(0, 2, 3, 1).flatten(2))).mean(1))


class NarrowKeys(nn.Module):
    """Self-attention whose queries and keys are narrower than its values, head by head in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.embed, self.norm = 4, nn.Conv2d(3, 24, 4, 4), nn.LayerNorm(24)
        self.qkv, self.proj, self.head = nn.Linear(24, 96), nn.Linear(64, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm(x)).unflatten(-1, (self.num_heads, 24)).transpose(1, 2)
        q, k, v = qkv.split([4, 4, 16], dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.proj(y.transpose(1, 2).flatten(2))).mean(1))


class Concatenated(nn.Module):
    """Two convolutions whose outputs are joined, and normalised together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 7, 3)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        return self.head(x.mean((2, 3)))


class Squeezed(nn.Module):
    """Channels with a gate that one dense layer makes of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 12, 3), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.head((x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]).mean((2, 3)))


class Scales(nn.Module):
    """A depthwise convolution that runs on features of two sizes, next to hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        small = F.relu(self.shared(F.max_pool2d(x, 2)))
        return self.fc2(F.gelu(self.fc1(F.relu(self.shared(x)).mean((2, 3)) + small.mean((2, 3)))))


class Positions(nn.Module):
    """A convolution, with an MLP of the positions that is added to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.Linear(2, 16),
            nn.Linear(16, 8),
            nn.Linear(8, 4),
        )
        self.register_buffer("grid", torch.rand(1, 30, 30, 2))

    def forward(self, x: Tensor) -> Tensor:
        added = self.fc2(F.relu(self.fc1(self.grid))).permute(0, 3, 1, 2)
        return self.head(F.relu(self.conv(x) + added.repeat(len(x), 1, 1, 1)).mean((2, 3)))


class Shuffled(nn.Module):
    """A convolution with groups behind a shuffle of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, groups=3)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x.unflatten(1, (4, 3)).transpose(1, 2).flatten(1, 2)
        return self.head(F.relu(self.second(x)).mean((2, 3)))


def timm_model(name: str, **options: object) -> nn.Module:
    model = timm.create_model(name, num_classes=5, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() <= 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model


IMAGE = (3, 32, 32)
TINY_SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), (6,)),
    "gated": (Gated, (6,)),
    "attention": (Attention, IMAGE),
    "interleaved": (Interleaved, IMAGE),
    "narrow keys": (NarrowKeys, IMAGE),
    "concatenation": (Concatenated, IMAGE),
    "squeezed": (Squeezed, IMAGE),
    "scales": (Scales, IMAGE),
    "positions": (Positions, IMAGE),
    "resnet": (lambda: timm_model("resnet18", layers=[1, 2, 1, 1], channels=[8, 16, 24, 32], stem_width=8), IMAGE),
    "bottleneck": (lambda: timm_model("resnet50", layers=[1, 1, 1, 1], channels=[8, 8, 16, 16], stem_width=8), IMAGE),
    "densenet": (lambda: timm_model("densenet121", growth_rate=8, block_config=(2, 2)), IMAGE),
    "mobilenet": (lambda: timm_model("mobilenetv3_small_050"), (3, 64, 64)),
    "efficientnet": (lambda: timm_model("efficientnet_lite0"), (3, 64, 64)),
    "regnet": (lambda: timm_model("regnety_002"), (3, 64, 64)),
    "convnext": (lambda: timm_model("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)), IMAGE),
    "vit": (
        lambda: timm_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3),
        IMAGE,
    ),
    "swin": (lambda: timm_model("swin_tiny_patch4_window7_224", **TINY_SWIN), (3, 64, 64)),
    "levit": (
        lambda: timm_model(
            "levit_128s", img_size=128, embed_dim=(16, 24, 32), key_dim=8, num_heads=(2, 3, 4), depth=(1, 1, 1)
        ),
        (3, 128, 128),
    ),
    "ghostnet": (lambda: timm_model("ghostnet_050"), (3, 64, 64)),
}
EXPECTED = {
    "mlp": [(16, "0.weight")],
    "gated": [(12, "fc1.weight")],
    "attention": [(4, "qkv.weight")],
    "interleaved": [(4, "qkv.weight")],
    "narrow keys": [(4, "qkv.weight")],
    "squeezed": [(12, "conv.weight")],
    "scales": [(32, "fc1.weight")],
    "positions": [(16, "fc1.weight"), (8, "fc2.weight")],
}


def prune_sets(network: nn.Module, groups: list[ChannelGroup], share: float = 0.5) -> dict[ChannelGroup, Tensor]:
    """Set the weights that read a share of the channels of each group to zero, and return the numbers of the sets."""
    weights, generator, chosen = dict(network.named_parameters()), torch.Generator().manual_seed(0), {}
    for group in groups:
        chosen[group] = torch.randperm(len(group), generator=generator)[: int(share * len(group))].sort().values
        for part in group.readers:
            weights[part.name].data[:, group.channels[part][chosen[group]].flatten()] = 0
    return chosen


SLOW = ("ghostnet", "regnet", "efficientnet", "mobilenet", "levit", "swin")


@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow if f in SLOW else ()) for f in FAMILIES])
def test_a_network_without_unread_channels_computes_the_same(family: str) -> None:
    build, shape = FAMILIES[family]
    torch.manual_seed(0)
    network = build().double().eval()
    images = torch.randn(2, *shape, dtype=torch.float64)
    groups = channel_groups(network, images[:1])
    assert [(len(group), group.name) for group in groups] == EXPECTED.get(family, [(len(g), g.name) for g in groups])
    chosen = prune_sets(network, groups)
    before = copy.deepcopy(network.state_dict())

    smaller, removal = shrink(network, images)

    assert not removal.kept
    assert {name: removed for name, (removed, _) in removal.removed.items()} == {
        group.name: len(sets) for group, sets in chosen.items() if len(sets)
    }
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), network(images), rtol=1e-9, atol=1e-9)
    size, smaller_size = (sum(p.numel() for p in model.parameters()) for model in (network, smaller))
    assert smaller_size < 0.85 * size
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_shuffle_of_fixed_size_keeps_its_channels(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    network, images = Shuffled().eval(), torch.randn(2, *IMAGE)
    prune_sets(network, channel_groups(network, images[:1]))
    with caplog.at_level(logging.WARNING):
        smaller, removal = shrink(network, images)
    torch.testing.assert_close(smaller(images), network(images))
    for name, reason in removal.kept.items():
        assert "\n" not in reason
        assert name in caplog.text


def test_a_wrong_group_is_put_back_and_the_others_are_removed() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.randn(4, 6)
    first, second = channel_groups(network, images[:1])
    chosen = prune_sets(network, [first, second])
    shifted = {part: (c + 1) % 8 if part.side == "in" else c for part, c in second.channels.items()}
    wrong = ChannelGroup(shifted)  # removes the readers of other channels than its writers

    smaller, removal = remove(network, {first: chosen[first], wrong: chosen[second]}, images)

    assert removal.removed == {"0.weight": (8, 16)}
    assert list(removal.kept) == ["2.weight"]
    assert "logits differ" in removal.kept["2.weight"]
    assert smaller[0].out_features == smaller[2].in_features == 8
    assert smaller[2].out_features == smaller[4].in_features == 8
    torch.testing.assert_close(smaller(images), network(images))


def test_an_unwritten_channel_stays_because_its_bias_is_read() -> None:
    network, images = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    network[0].weight.data[:3] = 0
    network[0].bias.data.fill_(1.0)
    (group,) = channel_groups(network, images[:1])
    assert unread_sets(network, group).tolist() == []
    network[2].weight.data[:, [1, 4]] = 0
    assert unread_sets(network, group).tolist() == [1, 4]


def test_channels_are_unread_only_if_every_reader_has_zeros() -> None:
    torch.manual_seed(0)

    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.first(x))
            return F.relu(self.a(hidden)) + self.b(hidden)

    network, images = TwoReaders(), torch.randn(3, 4)
    (group,) = channel_groups(network, images[:1])
    assert {part.name for part in group.readers} == {"a.weight", "b.weight"}
    network.a.weight.data[:, [0, 2]] = 0
    network.b.weight.data[:, [2, 3]] = 0
    assert unread_sets(network, group).tolist() == [2]


def test_a_fixed_filter_in_a_buffer_reads_its_channels() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(5, 2)
            self.register_buffer("mixing", torch.randn(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(F.linear(F.relu(self.first(x)), self.mixing)))

    torch.manual_seed(0)
    network, images = Projected(), torch.randn(3, 4)
    assert shrink(network, images)[1].removed == {}
    network.mixing[:, [1, 3]] = 0
    smaller, removal = shrink(network, images)
    assert removal.removed == {"first.weight": (2, 6)}
    assert smaller.mixing.shape == (5, 4)
    torch.testing.assert_close(smaller(images), network(images))


def test_a_layer_keeps_one_channel_if_nothing_reads_any() -> None:
    network, images = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    network[2].weight.data.zero_()
    smaller, removal = shrink(network, images)
    assert removal.removed == {"0.weight": (5, 6)}
    torch.testing.assert_close(smaller(images), network(images))


def test_channels_that_a_norm_over_channels_reads_stay() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))
    assert channel_groups(network, torch.randn(1, 4)) == []


def test_a_layer_that_runs_twice_keeps_its_channels() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.step(F.relu(self.step(x)))))

    assert channel_groups(Recurrent(), torch.randn(1, 4)) == []


def test_a_layer_that_runs_twice_hides_no_other_group() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(6, 6)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)) for _ in range(2))
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = self.shared(x)
                x = x + block(x)
            return self.head(x)

    groups = channel_groups(Twice(), torch.randn(1, 6))
    assert [group.name for group in groups] == ["blocks.0.0.weight", "blocks.1.0.weight"]


def test_heads_are_counted_in_the_smaller_network() -> None:
    torch.manual_seed(0)
    network, images = Attention(heads=3, width=24).eval(), torch.randn(2, *IMAGE)
    (group,) = channel_groups(network, images[:1])
    assert group.channels[Part("qkv.weight", "out")].shape == (3, 24)
    assert group.channels[Part("qkv.bias", "dim0")].shape == (3, 24)
    smaller, removal = remove(network, {group: torch.tensor([1])}, images)
    assert removal.removed == {}, "head 1 is still read"
    network.proj.weight.data[:, 8:16] = 0
    smaller, removal = shrink(network, images)
    assert (smaller.heads, smaller.qkv.out_features, smaller.proj.in_features) == (2, 48, 16)
    assert removal.attributes == {
        "": {"heads": 2}, "qkv": {"out_features": 48}, "proj": {"in_features": 16}
    }  # fmt: skip
    assert removal.shapes == {"qkv.weight": (48, 24), "qkv.bias": (48,), "proj.weight": (24, 16)}


def test_modes_random_state_and_gradients_are_as_before() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 2)).train()
    network[0].weight.requires_grad_(False)
    network[3].weight.data[:, 0] = 0
    torch.manual_seed(7)
    state = torch.get_rng_state()
    smaller, _ = shrink(network, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert network[1].training
    assert not smaller[0].weight.requires_grad
    assert smaller[3].weight.requires_grad


def test_the_groups_are_the_same_each_time() -> None:
    network, image = (
        timm_model("resnet18", layers=[1, 1, 0, 0], channels=[8, 16, 16, 16], stem_width=8),
        torch.randn(1, *IMAGE),
    )
    first, second = (channel_groups(network, image) for _ in range(2))
    assert [list(group.channels) for group in first] == [list(group.channels) for group in second]
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one.channels[part], other.channels[part]) for part in one.channels)


def test_half_precision() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(torch.bfloat16)
    network[2].weight.data[:, :4] = 0
    smaller, removal = shrink(network, torch.randn(2, 4, dtype=torch.bfloat16))
    assert removal.removed == {"0.weight": (4, 8)}
    assert smaller[0].weight.dtype is torch.bfloat16


def dense(network: nn.Module) -> nn.Module:
    """Return a network without zeros, in which `shrink` looks for no groups."""
    return network.apply(lambda module: [parameter.data.fill_(1.0) for parameter in module.parameters()])


@pytest.mark.parametrize("find", [channel_groups, shrink])
@pytest.mark.parametrize(
    ("damage", "images", "message"),
    [
        (lambda m: m.to("meta"), torch.randn(1, 6), "is on the meta device"),
        (lambda m: m[2].to("meta") and m, torch.randn(1, 6), "is on the meta device"),
        (lambda m: m, torch.randn(1, 5), r"does not run on images of the shape \(1, 5\) \(.*real size"),
        (dense, torch.randn(1, 5), r"does not run on images of the shape \(1, 5\)"),
        (lambda m: m, torch.zeros(0, 6), "images"),
        (lambda m: m, [1.0], "images"),
        (lambda m: m, None, "images"),
        (lambda m: "resnet18", torch.randn(1, 6), "network is a str; pass a torch.nn.Module"),
    ],
)
def test_a_network_that_cannot_run_is_an_error_of_one_line(
    find: Callable[..., object], damage: Callable[[nn.Module], nn.Module], images: Tensor, message: str
) -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    network[2].weight.data[:, :4] = 0
    with pytest.raises(MmpError, match=message) as caught:
        find(damage(network), images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("find", [channel_groups, shrink])
def test_a_network_that_holds_a_tensor_with_a_graph(find: Callable[..., object]) -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    network[2].weight.data[:, :4] = 0
    network[0].last = network[0].weight.sum(1)  # as LeViT keeps its biases; torch does not copy such tensors
    assert find(network, torch.randn(1, 6))


def test_without_any_sound_removal_the_network_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    network[2].weight.data[:, :2] = 0
    monkeypatch.setattr(removal_module, "TOLERANCE", -1.0)
    smaller, removal = shrink(network, images)
    assert removal.removed == {}
    assert list(removal.kept) == ["0.weight"]
    assert smaller[0].weight.shape == (6, 4)


def test_groups_do_not_depend_on_the_mode_of_the_network() -> None:
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten())
    found = [channel_groups(network.train(mode), torch.randn(1, 1, 8, 8)) for mode in (True, False)]
    assert [(group.name, len(group)) for group in found[0]] == [("0.weight", 6)]
    assert [group.channels.keys() for group in found[0]] == [group.channels.keys() for group in found[1]]
    assert network.training is False


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Hardswish(), nn.GELU(), nn.MaxPool2d(2), nn.Identity()])
def test_channels_whose_positions_are_read_one_by_one_are_whole_groups(activation: nn.Module) -> None:
    layers = [nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), activation, nn.Flatten()]
    inputs = nn.Sequential(*layers).eval()(torch.randn(2, 3, 10, 10)).shape[1]
    network = nn.Sequential(*layers, nn.Linear(inputs, 10))
    (group,) = channel_groups(network, torch.randn(1, 3, 10, 10))
    assert len(group) == 32
    assert group.channels[Part("4.weight", "in")].shape == (32, inputs // 32)
