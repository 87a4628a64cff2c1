"""Weights and scores of every floating-point type: half precision, zeros of either sign, values that are not finite."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.pruning.calibration_statistics import STATISTICS, collect
from mmp.pruning.criteria import CRITERIA, Random, criterion, global_masks
from mmp.pruning.masks import make_masks
from mmp.pruning.signals import Fisher, Product, normalise, score
from mmp.pruning.topk import keep_highest

HALVES = [torch.bfloat16, torch.float16]


def small_net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).to(dtype)


def small_batches(dtype: torch.dtype, count: int = 2, scale: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (scale * torch.randn(4, 3, 8, 8, generator=generator).to(dtype), torch.arange(4) % 10) for _ in range(count)
    ]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_scores_weights_of_half_precision(name: str, dtype: torch.dtype) -> None:
    model, chosen = small_net(dtype), criterion(name)
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    statistics = collect(model, weights, small_batches(dtype), nn.CrossEntropyLoss(), chosen.needs)
    scores = score(chosen, weights, statistics)
    assert all(value.dtype in (torch.float32, torch.float64) for value in scores.values())
    assert sum(global_masks(scores, 1000).pruned.values()) == 1000
    assert all(mask.any() for mask in make_masks(scores, dict.fromkeys(scores, 0.9)).values())


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_random_scores_differ_in_every_data_type(dtype: torch.dtype) -> None:
    weight = torch.zeros(30, 40, dtype=dtype)
    scores = Random().score(weight, {})
    assert len(scores.unique()) == scores.numel()
    assert torch.equal(scores, Random().score(weight.T.contiguous().T, {}))  # any memory layout
    assert not torch.equal(scores, Random().score(weight + 1, {}))


def test_random_scores_of_float32_are_those_of_earlier_versions() -> None:
    weight = torch.arange(6.0).view(2, 3)
    seed = zlib.crc32(weight.numpy().tobytes())
    expected = torch.rand(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.equal(Random().score(weight, {}), expected)


def test_small_gradients_of_half_precision_do_not_vanish_in_squares() -> None:
    layer = nn.Linear(3, 1, bias=False).half()
    layer.weight.data = torch.tensor([[1e-3, 2e-3, 3e-3]]).half()
    batches = [(torch.full((1, 3), 1e-3).half(), torch.zeros(1, 1).half())]  # the gradient is 1e-3, its square 1e-6
    for scorer in (Fisher(), criterion("taylor"), criterion("snip"), Product()):
        statistics = collect(layer, {"w": layer.weight}, batches, lambda a, _: a.sum(), scorer.needs)
        (scores,) = score(scorer, {"w": layer.weight}, statistics).values()
        assert scores.flatten().tolist() == sorted(set(scores.flatten().tolist())), scorer.name
        assert scores.min() > 0


def test_large_gradients_of_half_precision_do_not_overflow_in_sums() -> None:
    layer = nn.Linear(2, 1, bias=False).half()
    batches = [(torch.full((1000, 2), 100.0).half(), torch.zeros(1000, 1).half())]
    statistics = collect(layer, {"w": layer.weight}, batches, lambda a, _: a.mean(), ["gradient", "squared_gradient"])
    assert statistics["gradient"]["w"].flatten().tolist() == pytest.approx([100.0, 100.0], rel=1e-2)
    assert statistics["squared_gradient"]["w"].flatten().tolist() == pytest.approx([1e4, 1e4], rel=1e-2)
    many = [(torch.ones(1, 2).bfloat16(), torch.zeros(1, 1)) for _ in range(600)]  # bfloat16 counts to 256
    layer = nn.Linear(2, 1, bias=False).bfloat16()
    statistics = collect(layer, {"w": layer.weight}, many, lambda a, _: a.sum(), ["absolute_gradient"])
    assert statistics["absolute_gradient"]["w"].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("dtype", HALVES)
def test_statistics_of_half_precision_are_near_those_of_float32(dtype: torch.dtype) -> None:
    found = {}
    for kind in (dtype, torch.float32):
        model = small_net(kind)
        weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
        found[kind] = collect(model, weights, small_batches(kind), nn.CrossEntropyLoss(), STATISTICS)
    for statistic, values in found[torch.float32].items():
        for name, expected in values.items():
            close = torch.nn.functional.cosine_similarity(
                found[dtype][statistic][name].flatten().double(), expected.flatten().double(), dim=0
            )
            assert close > 0.99, (statistic, name)


def test_no_weights_have_no_scores() -> None:
    assert normalise(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("size", [8, 5000])  # sorted, and with a histogram
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_zeros_of_either_sign_are_equal_scores(size: int, dtype: torch.dtype) -> None:
    scores = torch.zeros(size, dtype=dtype)
    scores[::2] = -0.0
    expected = torch.arange(size) >= size // 2  # lower flat indices are pruned first
    assert torch.equal(keep_highest(scores, size // 2), expected)


@pytest.mark.parametrize("size", [8, 5000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_scores_that_are_not_finite_are_refused_in_every_data_type(size: int, bad: float, dtype: torch.dtype) -> None:
    scores = torch.ones(size, dtype=dtype)
    scores[size // 3] = bad
    with pytest.raises(MmpError, match="scores hold NaN or infinity"):
        keep_highest(scores, 1)


@pytest.mark.parametrize("dtype", HALVES)
def test_top_k_of_half_precision_is_that_of_float32(dtype: torch.dtype) -> None:
    scores = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)  # many of them are equal
    for pruned in (0, 1, 2500, 4999, 5000):
        assert torch.equal(keep_highest(scores, pruned), keep_highest(scores.float(), pruned))
