"""What a removal knows of the tensors of a network, and which channels are unread."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmp import MmpError, channel_groups, channel_masks, shrink
from mmp.pruning.channels import shrink as shrinking
from mmp.pruning.channels.group import ChannelGroup, Part
from mmp.pruning.channels.removal import set_attributes
from mmp.pruning.channels.shrink import remove
from mmp.pruning.channels.unread import removable


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5
    )


def swin() -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **sizes)


def resnet() -> nn.Module:
    return timm.create_model("resnet18", num_classes=5, layers=[1, 1, 1, 1], channels=[8, 16, 16, 24], stem_width=8)


NETWORKS: list[Callable[[], nn.Module]] = [vit, swin, resnet]


def pruned(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """Return a network without half of the channels of every group, images, and its masks."""
    torch.manual_seed(0)
    network, images = build().eval(), torch.randn(4, 3, 32, 32)
    groups = channel_groups(network, images[:1])
    scores = {name: p.detach().abs() for name, p in network.named_parameters() if p.dim() > 1}
    masks = channel_masks(groups, scores, {group.name: 0.5 for group in groups}, multiple=1)
    with torch.no_grad():
        for name, mask in masks.items():
            network.get_parameter(name).mul_(mask)
    return network, images, dict(masks)


@pytest.mark.parametrize("build", NETWORKS)
def test_a_removal_narrows_the_tensors_of_the_original_network(build: Callable[[], nn.Module]) -> None:
    network, images, masks = pruned(build)
    smaller, removal = shrink(network, images)
    assert removal.removed
    state = smaller.state_dict()
    narrowed = removal.narrowed(network.state_dict())
    assert narrowed.keys() == state.keys()
    assert all(torch.equal(narrowed[name], value) for name, value in state.items())
    assert {name: tuple(value.shape) for name, value in narrowed.items() if name in removal.shapes} == {
        name: shape for name, shape in removal.shapes.items() if name in narrowed
    }
    left = removal.narrowed(masks)
    assert all(left[name].shape == state[name].shape for name in masks)
    assert not any(state[name][~mask].any() for name, mask in left.items())
    assert all(mask.shape == network.get_parameter(name).shape for name, mask in masks.items())


@pytest.mark.slow
@pytest.mark.parametrize("build", NETWORKS)
def test_a_removal_makes_a_new_network_as_small(build: Callable[[], nn.Module]) -> None:
    network, images, _ = pruned(build)
    smaller, removal = shrink(network, images)
    fresh = build().eval()
    removal.apply(fresh)
    fresh.load_state_dict(smaller.state_dict())
    assert torch.equal(fresh(images), smaller(images))
    assert all(parameter.requires_grad for parameter in fresh.parameters())


def test_a_channel_that_only_unread_channels_read_is_removed() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)
    )
    with torch.no_grad():
        network[6].weight[:, :3] = 0
        network[4].weight[3:, :2] = 0  # only rows 0 to 2, which go, read channels 0 and 1
        network[2].weight[2:, 5] = 0
    images = torch.randn(3, 4)
    smaller, removal = shrink(network, images)
    assert removal.removed == {"0.weight": (1, 6), "2.weight": (2, 6), "4.weight": (3, 6)}
    torch.testing.assert_close(smaller(images), network(images))


def test_a_group_of_one_set_stays() -> None:
    network = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 2))
    network[2].weight.data.zero_()
    only = torch.zeros(1, 1, dtype=torch.int64)
    assert removable(network, [ChannelGroup({Part("0.weight", "out"): only, Part("2.weight", "in"): only})]) == {}


def test_a_network_without_columns_of_zeros_needs_no_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    network[0].weight.data[0] = 0  # a row

    def experiment(*_: object) -> list[ChannelGroup]:
        raise AssertionError

    monkeypatch.setattr(shrinking, "channel_groups", experiment)
    smaller, removal = shrink(network, images)
    assert (removal.removed, removal.kept, removal.shapes, removal.attributes) == ({}, {}, {}, {})
    assert torch.equal(smaller(images), network(images))
    assert smaller is not network


class Rounding(nn.Module):
    """Its error depends on its width, unless it computes in float64: as sums of another number of terms do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.a(x)))
        return x if x.dtype is torch.float64 else x * (1 + 0.01 * self.a.out_features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_keeps_no_channel(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network, images = Rounding().to(dtype), torch.randn(3, 4).to(dtype)
    network.b.weight.data[:, ::2] = 0
    smaller, removal = shrink(network, images)
    assert removal.removed == {"a.weight": (3, 6)}
    assert not removal.kept
    assert smaller.a.weight.dtype is dtype


def test_groups_that_only_fail_together_are_not_all_put_back() -> None:
    class Even(nn.Module):
        """Its hidden widths differ by at most one channel."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            if self.a.out_features + self.b.out_features < 10:
                raise RuntimeError("too narrow\nat all")
            return self.head(F.relu(self.b(F.relu(self.a(x)))))

    torch.manual_seed(0)
    network, images = Even(), torch.randn(3, 4)
    network.b.weight.data[:, :2] = 0
    network.head.weight.data[:, :2] = 0
    smaller, removal = shrink(network, images)
    assert removal.removed == {"a.weight": (2, 6)}
    assert removal.kept == {"b.weight": "the network does not run without them (too narrow)"}
    torch.testing.assert_close(smaller(images), network(images))


def test_tied_weights_are_no_error() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.c.weight = self.b.weight
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            return self.head(F.relu(self.b(x)) + F.relu(self.c(x)))

    torch.manual_seed(0)
    network, images = Tied(), torch.randn(3, 4)
    network.b.weight.data[:, :2] = 0
    network.head.weight.data[:, 4:] = 0
    smaller, _ = shrink(network, images)
    torch.testing.assert_close(smaller(images), network(images))


def test_an_empty_choice_returns_a_copy() -> None:
    network, images = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    smaller, removal = remove(network, {}, images)
    assert removal.narrowed(network.state_dict()).keys() == smaller.state_dict().keys()
    before = copy.deepcopy(network.state_dict())
    smaller[0].weight.data.zero_()
    assert torch.equal(network[0].weight, before["0.weight"])


@pytest.mark.parametrize(
    ("attributes", "part"),
    [
        ({"9": {"out_features": 3}}, "'out_features' of module '9'"),
        ({"0": {"weight": 3}}, "'weight' of module '0'"),
        ({"0": {"forward": 3}}, "'forward' of module '0'"),
        ({"0": {"training": 3}}, "'training' of module '0'"),
        ({"0": {"out_features": 0}}, "is 0, but must be"),
        ({"0": {"out_features": True}}, "is True, but must be"),
        ({"0": {"out_features": "3"}}, "is '3', but must be"),
    ],
)
def test_attributes_that_count_no_channels_are_refused(attributes: dict[str, dict[str, int]], part: str) -> None:
    network = nn.Sequential(nn.Linear(4, 6))
    with pytest.raises(MmpError, match=part):
        set_attributes(network, attributes)
    assert network[0].out_features == 6


class Convolutions(nn.Module):
    """Hidden widths of 32 and 24 channels of convolutions, and of 32 units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 24, 1), nn.Conv2d(24, 20, 1)
        self.d, self.e = nn.Linear(20, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.e(F.relu(self.d(x.mean((2, 3)))))


@pytest.mark.parametrize(
    ("multiple", "left"),
    [(1, (29, 21, 17, 29)), (4, (32, 24, 20, 29)), (16, (32, 24, 20, 29))],
)
def test_widths_of_convolutions_stay_multiples(multiple: int, left: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network, images = Convolutions(), torch.randn(2, 3, 4, 4)
    for layer in (network.b, network.c, network.d, network.e):
        layer.weight.data[:, :3] = 0
    smaller, removal = shrink(network, images, multiple=multiple)
    widths = (smaller.a.out_channels, smaller.b.out_channels, smaller.c.out_channels, smaller.d.out_features)
    assert widths == left
    assert not removal.kept
    torch.testing.assert_close(smaller(images), network(images))


def test_as_many_channels_go_as_fill_multiples() -> None:
    torch.manual_seed(0)
    network, images = Convolutions(), torch.randn(2, 3, 4, 4)
    for layer, unread in ((network.b, 20), (network.c, 17), (network.d, 9)):
        layer.weight.data[:, :unread] = 0
    smaller, _ = shrink(network, images, multiple=16)
    # 12 of 32 are read, so 16 stay; 7 of 24, so 8; 11 of 20, so 12
    assert (smaller.a.out_channels, smaller.b.out_channels, smaller.c.out_channels) == (16, 8, 12)
    torch.testing.assert_close(smaller(images), network(images))
    network.b.weight.data.zero_()
    smaller, _ = shrink(network, images, multiple=16)
    assert smaller.a.out_channels == 16
    assert shrink(network, images)[0].a.out_channels == 1


@pytest.mark.parametrize("multiple", [0, 1.5, "16"])
def test_a_multiple_that_is_no_positive_whole_number_is_an_error(multiple: object) -> None:
    with pytest.raises(MmpError, match=f"multiple={multiple!r}: must be a whole number of at least 1"):
        shrink(nn.Sequential(nn.Linear(4, 2)), torch.randn(2, 4), multiple=multiple)


def test_outputs_that_are_not_finite_are_an_error() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    network[2].weight.data[:, :4] = 0
    with pytest.raises(MmpError, match="the network's outputs hold NaN or infinity; check its weights and the images"):
        shrink(network, torch.full((2, 4), torch.nan))
