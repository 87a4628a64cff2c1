"""Counts of weights from sparsities: the floor of the product, as decimal arithmetic gives it."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmp.errors import MmpError
from mmp.pruning.budgets import BUDGET_CEILING, Budget, Shift, Target, inwards
from mmp.pruning.counts import floor_product, pruned_count, sparsity_of
from mmp.pruning.criteria import global_masks
from mmp.pruning.layers.layer import Layer
from mmp.pruning.masks import make_grid, make_masks
from mmp.pruning.patterns import Pattern, WeightShape
from mmp.pruning.ranges import Range
from mmp.pruning.schedules import Stepwise
from mmp.pruning.sizes import MEGABYTE, Sizes


def sized(*sizes: int) -> tuple[Layer, ...]:
    return tuple(Layer(str(i), "", "conv", None, 0.0, (size,)) for i, size in enumerate(sizes))


@pytest.mark.parametrize(
    ("sparsity", "total", "expected"),
    [
        (0.0, 7, 0),
        (1.0, 7, 7),
        (0.5, 7, 3),
        (0.999, 1000, 999),
        (0.3, 10, 3),
        (0.98, 49, 48),
        (0.0999, 10, 0),
    ],
)
def test_count_is_the_floor(sparsity: float, total: int, expected: int) -> None:
    assert pruned_count(sparsity, total) == expected


@given(st.integers(0, 2**20), st.integers(0, 2**20))
def test_count_is_exact_in_binary_fractions(numerator: int, total: int) -> None:
    assert pruned_count(numerator / 2**20, total) == numerator * total // 2**20


@given(st.decimals(0, 1, places=6), st.integers(0, 10**8))
def test_count_is_exact_in_decimal_fractions(sparsity: Decimal, total: int) -> None:
    assert pruned_count(float(sparsity), total) == math.floor(sparsity * total)


def test_every_percentage_of_a_hundred_weights_is_that_number() -> None:
    wrong = [percent for percent in range(101) if math.floor(percent / 100 * 100) != percent]
    assert wrong == [29, 57, 58]  # the cases for which the plain product is too small
    assert [pruned_count(percent / 100, 100) for percent in range(101)] == list(range(101))


@pytest.mark.parametrize(
    ("computed", "total", "expected"),
    [(1 - 0.9, 10, 1), (0.8 - 0.1, 10, 7), (0.1 * 3, 10, 3), (0.95 - 0.05, 1000, 900), (1 - 0.71, 10**8, 29 * 10**6)],
)
def test_a_computed_sparsity_stands_for_its_decimal_number(computed: float, total: int, expected: int) -> None:
    assert pruned_count(computed, total) == expected


def test_counts_of_strategies_are_those_of_decimal_arithmetic() -> None:
    differ = 0
    for lo, hi, position in itertools.product(range(0, 100, 7), range(0, 100, 9), range(0, 101, 5)):
        if lo > hi:
            continue
        meant = Fraction(lo, 100) + Fraction(position, 100) * Fraction(hi - lo, 100)
        found = Range(lo / 100, hi / 100).at(position / 100)
        for total in (100, 2_000, 48_000):
            assert pruned_count(found, total) == math.floor(meant * total)
            differ += math.floor(found * total) != math.floor(meant * total)
    assert differ > 100  # the plain product is wrong for many of them


def test_counts_on_a_ramp_are_those_of_decimal_arithmetic() -> None:
    schedule = Stepwise(range(10))  # tenths of the final sparsity
    scores = {"a": torch.arange(1000.0)}
    for epoch in range(10):
        fraction = schedule.fraction(epoch)
        grid = make_grid(scores, {str(percent): {"a": percent / 100} for percent in range(100)}, fraction=fraction)
        expected = {str(percent): {"a": (epoch + 1) * percent} for percent in range(100)}
        assert {name: masks.pruned for name, masks in grid.items()} == expected


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**9))
def test_count_never_decreases_when_the_sparsity_rises(one: float, other: float, total: int) -> None:
    assert pruned_count(min(one, other), total) <= pruned_count(max(one, other), total) <= total


@given(st.integers(1, 10**9), st.data())
def test_a_count_is_recovered_from_its_sparsity(total: int, data: st.DataObject) -> None:
    pruned = data.draw(st.integers(0, total))
    assert pruned_count(pruned / total, total) == pruned
    sparsity = sparsity_of(pruned, total)
    assert pruned_count(sparsity, total) == math.floor(sparsity * total) == pruned


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_sparsity_outside_the_unit_interval_is_refused(sparsity: float) -> None:
    with pytest.raises(MmpError, match=rf"sparsity {sparsity} is outside"):
        pruned_count(sparsity, 10)


def test_masks_and_patterns_count_alike() -> None:
    scores = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    assert make_masks({"a": scores}, {"a": 0.29}).pruned == {"a": 29}
    blocks = Pattern.parse("1x2")  # floor(0.58 * 100) = 58 weights are 29 blocks
    assert make_masks({"a": scores}, {"a": 0.58}, blocks).pruned == {"a": 58}
    assert pruned_count(blocks.whole(WeightShape((10, 10)), 0.58), 100) == 58
    assert Pattern.parse("42:100").takes(WeightShape((1, 100)), 0.58)


def test_a_minimum_density_keeps_the_decimal_number_of_weights() -> None:
    scores = {"a": torch.arange(100.0), "b": torch.arange(100.0) + 100}
    assert global_masks(scores, 58, min_density=0.42).pruned == {"a": 58, "b": 0}
    assert global_masks(scores, 10, min_density=0.9).pruned == {"a": 10, "b": 0}  # 1 - 0.9 is less than 0.1


def test_budgets_count_alike() -> None:
    whole = Shift(sized(100, 100)).whole_weights({"0": 0.29, "1": 0.57})
    assert [pruned_count(sparsity, 100) for sparsity in whole.values()] == [29, 57]
    assert inwards(0.5701, 0.5801) == "0.5701 to 0.5801"


@pytest.mark.parametrize("sizes", [(1, 100, 1000), (3, 7, 11), (49, 50, 51), (999, 1001, 1003)])
def test_a_budget_at_the_limit_is_in_reach(sizes: tuple[int, ...]) -> None:
    layers = sized(*sizes)
    target = Target(BUDGET_CEILING, Sizes(sum(sizes), 4, 0, 0))
    start = {layer.name: 0.5 for layer in layers}
    assert Shift(layers).to_budget(start, target, "it can be shifted").keys() == start.keys()


@pytest.mark.parametrize("megabytes", [1.001, 0.29, 0.57, 2.3, 4.35])
def test_a_budget_in_megabytes_is_a_whole_number_of_bytes(megabytes: float) -> None:
    size = math.floor(Decimal(str(megabytes)) * MEGABYTE)
    assert floor_product(megabytes, MEGABYTE) == size
    sizes = Sizes(weights=2 * size, width=1, masks=0, others=0)  # a byte is a weight
    target = Budget(megabytes=megabytes).target("any", sizes)
    assert target is not None
    assert round(target.sparsity * sizes.weights) == size
