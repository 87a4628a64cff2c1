"""Budgets of whole channels: met to one step of one group, with the limits of the ranges, or refused in one line."""

from __future__ import annotations

import itertools
import re
from functools import cache

import pytest
from channel_networks import build, image_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mmp import Budget, MmpError, load_strategies
from mmp.plan import load_ranges, make_plan
from mmp.pruning.channels.budget import Allowance, ChannelShift
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.patterns import Channels
from mmp.pruning.ranges import Constraints, Range, RangeTable, RuleTable

FREE = RangeTable("free", RuleTable("free", (), Range(0.0, 0.9)), constraints=Constraints(small_below=0))


@cache
def structure(family: str = "resnet", multiple: int = 4) -> WholeChannels:
    return WholeChannels.of(build(family), image_of(family), Channels(multiple))


def shifted(found: WholeChannels, sparsities: dict[str, float], table: RangeTable, budget: Budget) -> list[int]:
    """Return the number of sets that each group loses."""
    return found.removed(found.to_budget(sparsities, table, budget, "mine", "strategy mine"))


def budgets(found: WholeChannels, share: float) -> dict[str, tuple[Budget, int]]:
    """Return a budget in each unit that leaves about a share, with the highest cost that it allows."""
    costs = found.costs
    megabytes = round(share * costs.bytes / 1e6, 6)
    return {
        "parameters": (Budget(1 - share), int((share + 1e-12) * costs.parameters)),
        "macs": (Budget(macs=share), int((share + 1e-12) * costs.multiply_adds)),
        "bytes": (Budget(megabytes=megabytes), int((megabytes + 1e-12) * 1e6)),
    }


def cost(found: WholeChannels, unit: str, removed: list[int]) -> int:
    costs = found.costs
    left = {"parameters": costs.parameters_left, "macs": costs.multiply_adds_left, "bytes": costs.bytes_left}
    return left[unit](removed)


@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data())
def test_a_budget_is_met_to_one_step_of_one_group_or_refused(data: st.DataObject) -> None:
    family, multiple = data.draw(
        st.sampled_from([("resnet", 4), ("resnet", 1), ("vit", 16), ("grouped convolution", 8)])
    )
    found = structure(family, multiple)
    sparsities = {layer.name: data.draw(st.floats(0, 0.98), layer.name) for layer in found.layers}
    share = data.draw(st.floats(0.01, 1.0))
    unit = data.draw(st.sampled_from(["parameters", "macs", "bytes"]))
    budget, most = budgets(found, share)[unit]
    shift = ChannelShift.of(found.layers, found.steps, FREE)
    if most < cost(found, unit, shift.counts(sparsities, 1.0)):
        with pytest.raises(MmpError, match=r"\A.* is out of reach: .*\Z"):
            shifted(found, sparsities, FREE, budget)
        return
    removed = shifted(found, sparsities, FREE, budget)
    assert cost(found, unit, removed) <= most
    for number, count in enumerate(removed):
        layer, step = found.layers[number], found.steps[number]
        kept = layer.shape[0] - count
        assert kept >= 1
        assert count == 0 or kept % step == 0
        assert count <= 0.98 * layer.shape[0]
        if count:  # one step less of any group costs too much
            fewer = layer.shape[0] - min(layer.shape[0], (kept // step + 1) * step)
            assert cost(found, unit, [*removed[:number], fewer, *removed[number + 1 :]]) > most
    assert removed == shifted(found, sparsities, FREE, budget)


def test_higher_budgets_remove_more() -> None:
    found = structure()
    sparsities = {layer.name: 0.3 for layer in found.layers}
    left = [found.costs.parameters_left(shifted(found, sparsities, FREE, Budget(b / 20))) for b in range(0, 18, 3)]
    assert all(one >= other for one, other in itertools.pairwise(left))


def test_small_groups_stay_as_they_are() -> None:
    found = structure()
    threshold = sorted(layer.size for layer in found.layers)[3]
    table = RangeTable("t", RuleTable("t", (), Range(0, 0.9)), constraints=Constraints(small_below=threshold))
    small = table.small(found.layers)
    assert 0 < len(small) < len(found.layers)
    sparsities = {layer.name: 0.5 for layer in found.layers}
    before = found.removed(sparsities)
    for budget in (Budget(0.2), Budget(0.6), Budget(macs=0.6)):
        removed = shifted(found, sparsities, table, budget)
        assert all(
            now == then for now, then, layer in zip(removed, before, found.layers, strict=True) if layer.name in small
        )
        assert removed != before
    with pytest.raises(MmpError, match=r"budget=0.98 is out of reach.*ranges.constraints.small_below=0 turns this off"):
        shifted(found, sparsities, table, Budget(0.98))


def test_no_group_is_pruned_beyond_the_ceiling() -> None:
    found = structure()
    table = RangeTable("t", RuleTable("t", (), Range(0, 0.9)), constraints=Constraints(small_below=0, ceiling=0.5))
    removed = shifted(found, {layer.name: 0.1 for layer in found.layers}, table, Budget(0.55))
    assert all(count <= 0.5 * layer.shape[0] for count, layer in zip(removed, found.layers, strict=True))
    with pytest.raises(MmpError, match=r"no group loses more than 50 % \(ranges.constraints.ceiling\)"):
        shifted(found, {layer.name: 0.1 for layer in found.layers}, table, Budget(0.9))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(0.99), r"budget=0.99 is out of reach: strategy mine can be shifted to 0.0000 to (0\.\d{4}) of all"),
        (Budget(macs=0.001), r"budget.macs=0.001 is out of reach: .* to (0\.\d{4}) to 1.0000 of the multiply-adds"),
        (Budget(megabytes=0.002), r"budget.megabytes=0.002 is out of reach: .* to (0\.\d{3}) to 0.\d{3} MB"),
    ],
)  # fmt: skip
def test_a_limit_in_the_message_is_in_the_unit_of_the_budget_and_can_be_met(budget: Budget, message: str) -> None:
    found = structure()
    sparsities = {layer.name: 0.2 for layer in found.layers}
    with pytest.raises(MmpError, match=message) as caught:
        shifted(found, sparsities, FREE, budget)
    text = str(caught.value)
    assert "\n" not in text
    limit = float(re.search(message, text)[1])
    key = "macs" if budget.macs else "megabytes" if budget.megabytes else "sparsity"
    shifted(found, sparsities, FREE, Budget(**{key: limit}))
    beyond = limit + 0.001 if key == "sparsity" else limit - 0.001
    with pytest.raises(MmpError, match="out of reach"):
        shifted(found, sparsities, FREE, Budget(**{key: beyond}))


def test_a_budget_of_all_or_nothing_leaves_the_network_whole() -> None:
    found = structure()
    sparsities = {layer.name: 0.5 for layer in found.layers}
    assert not any(shifted(found, sparsities, FREE, Budget(0.0)))
    assert not any(shifted(found, sparsities, FREE, Budget(macs=1.0)))
    assert shifted(found, sparsities, FREE, Budget()) == found.removed(sparsities)


def test_a_strategy_may_have_a_target_of_its_own() -> None:
    found = structure()
    budget = Budget(0.2, strategies={"mine": 0.5})
    allowance = Allowance.of(budget, "mine", found.costs)
    assert allowance is not None
    assert allowance.most == found.costs.parameters - round(0.5 * found.costs.parameters + 0.25)
    assert Allowance.of(Budget(strategies={"mine": 0.5}), "other", found.costs) is None


@pytest.mark.parametrize("family", ["resnet", "vit", pytest.param("levit", marks=pytest.mark.slow)])
@pytest.mark.parametrize("budget", [None, Budget(0.2), Budget(macs=0.8)])
def test_all_strategies_make_a_plan(family: str, budget: Budget | None) -> None:
    found = structure(family, 4)
    plan = make_plan(build(family), load_ranges("channels"), budget=budget, pattern="channels:4", structure=found)
    assert set(plan.sparsities) == {strategy.name for strategy in load_strategies()}
    assert len(plan.sparsities) == 10
    for name, sparsities in plan.sparsities.items():
        facts, removed = plan.summary(name), found.removed(sparsities)
        assert facts["parameters_left"] == found.costs.parameters_left(removed)
        assert plan.pruned[name] == found.costs.parameters - facts["parameters_left"]
        if budget is None:  # rounded down to whole steps inside the range
            assert all(sparsities[layer.name] <= plan.ranges[layer.name].hi for layer in found.layers)
        else:
            assert facts["sparsity_all"] >= (budget.sparsity or 0.0)
            assert facts["multiply_adds"] <= (budget.macs or 1.0)
        assert str(plan)
