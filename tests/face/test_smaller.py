"""``mmp.prune(...).smaller()``: the network without the channels that nothing reads."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn

import mmp


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), *head)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.slow
def test_whole_channels_are_gone_and_the_logits_stay(model: nn.Module, images: Tensor) -> None:
    result = mmp.prune(model, images=images, pattern="channels")
    before = {name: value.clone() for name, value in result.model.state_dict().items()}
    smaller = result.smaller()
    assert parameters(smaller) < 0.8 * parameters(model)
    assert not smaller.training
    assert result.model.training
    torch.testing.assert_close(smaller(images), result.model.eval()(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in result.model.state_dict().items())
    _, removal = mmp.shrink(result.model, result.images)
    assert set(removal.removed) == {"0.weight", "3.weight"}


def test_the_text_counts_the_parameters_that_are_removed(model: nn.Module, images: Tensor) -> None:
    result = mmp.prune(model, images=images, pattern="channels")
    before, after = parameters(model), parameters(result.smaller())
    assert after < before
    share = f"{100 * (1 - after / before):.2f} %"
    assert f"Pruned: {before - after:,} of {before:,} parameters ({share}), in whole channels.\n" in str(result)
    assert "output error" not in str(result)


def test_dead_channels_of_single_weights_are_gone(model: nn.Module, images: Tensor) -> None:
    model[3].weight.data[:, :20] *= 1e-6
    result = mmp.prune(model, 0.5, images, reconstruct="none")
    smaller = result.smaller()
    assert smaller[0].out_channels == 44
    torch.testing.assert_close(smaller(images), result.model.eval()(images), rtol=1e-4, atol=1e-5)


def test_without_unread_channels_it_is_a_copy(model: nn.Module, images: Tensor) -> None:
    result = mmp.prune(model, 0.1, images)
    smaller = result.smaller()
    assert parameters(smaller) == parameters(model)
    smaller[0].weight.data.zero_()
    assert result.model[0].weight.any()


@pytest.mark.slow
def test_every_strategy_has_its_own(model: nn.Module, images: Tensor) -> None:
    sizes = {
        name: parameters(result.smaller())
        for name, result in mmp.prune_all(model, images=images, pattern="channels", strategies=["p30", "p70", "p90"])
    }
    assert sizes["p30"] >= sizes["p70"] >= sizes["p90"]
    assert sizes["p30"] > sizes["p90"]


def test_a_result_keeps_a_few_images_without_the_others(model: nn.Module, images: Tensor) -> None:
    result = mmp.prune(model, 0.5, images)
    assert torch.equal(result.images, images[:16])
    assert result.images.untyped_storage().nbytes() == 16 * 3 * 8 * 8 * 4


def test_images_can_be_given_later(model: nn.Module, images: Tensor) -> None:
    model[3].weight.data[:, :20] = 0
    result = mmp.prune(model, 0.5)
    assert result.images is None
    with pytest.raises(mmp.MmpError, match=r"the call of mmp.prune had no images; pass a few, as smaller\(images\)"):
        result.smaller()
    assert result.smaller(images)[0].out_channels <= 44
    assert result.smaller([(images, torch.zeros(64))])[0].out_channels <= 44


@pytest.mark.parametrize(
    ("odd", "part"),
    [
        (torch.zeros(0, 3, 8, 8), "images is empty"),
        (torch.zeros(2, 1, 8, 8), "does not accept"),
        (torch.zeros(3, 8, 8), "must be"),
        (torch.full((2, 3, 8, 8), torch.nan), "NaN"),
        (5, "pass a tensor"),
    ],
)
def test_odd_images_are_one_line(model: nn.Module, odd: object, part: str) -> None:
    with pytest.raises(mmp.MmpError, match=part) as raised:
        mmp.prune(model, 0.5).smaller(odd)
    assert "\n" not in str(raised.value)


def test_the_example_of_the_docstring() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(mmp.PruneResult.smaller, "smaller")
    found = doctest.DocTestRunner().run(example)
    assert found.attempted >= 5
    assert found.failed == 0
