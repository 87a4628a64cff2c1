from __future__ import annotations

import logging
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mmp.errors import MmpError
from mmp.pruning.budgets import BUDGET_CEILING, Shift, global_sparsity
from mmp.pruning.counts import pruned_count
from mmp.pruning.layers.layer import Layer
from mmp.pruning.ranges import Range
from mmp.pruning.strategies import Strategy, layer_sparsities, positions

STEPS = ("conservative", "p30", "p50", "p70", "p90", "aggressive")
NAMES = {*STEPS, "balanced", "proportional", "classifier_heavy", "feature_heavy"}

# 1000 weights in all, 250 in an average layer.
LAYERS = (
    Layer("stem", "", "stem", None, 0.0, (10,)),
    Layer("early", "", "conv", 0, 1 / 3, (30,)),
    Layer("late", "", "conv", 1, 2 / 3, (60,)),
    Layer("head", "", "classifier", None, 1.0, (900,)),
)
RANGES = {
    "stem": Range(0.0, 0.2),
    "early": Range(0.2, 0.6),
    "late": Range(0.4, 0.8),
    "head": Range(0.5, 0.9),
}
GROUPS = {"late": frozenset({"head"}), "feature": frozenset({"late"})}


@pytest.fixture(scope="session")
def ten(conf: Path) -> dict[str, Strategy]:
    """The strategies under ``conf/strategy``, by the name of their file."""
    files = (conf / "strategy").glob("*.yaml")
    return {path.stem: Strategy(**OmegaConf.to_container(OmegaConf.load(path))) for path in files}


def apply(strategy: Strategy) -> list[float]:
    sparsities = layer_sparsities(strategy, LAYERS, RANGES, GROUPS)
    assert list(sparsities) == ["stem", "early", "late", "head"]
    return list(sparsities.values())


def sized(*sizes: int) -> tuple[Layer, ...]:
    return tuple(Layer(str(i), "", "conv", None, 0.0, (size,)) for i, size in enumerate(sizes))


# --- the ten files ---


def test_there_are_ten_strategies_named_like_their_files(ten: dict[str, Strategy]) -> None:
    assert ten.keys() == NAMES
    assert all(strategy.name == name for name, strategy in ten.items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conservative", [0.0, 0.2, 0.4, 0.5]),
        ("aggressive", [0.2, 0.6, 0.8, 0.9]),
        ("balanced", [0.1, 0.4, 0.6, 0.7]),
        ("p30", [0.06, 0.32, 0.52, 0.62]),
        ("p50", [0.1, 0.4, 0.6, 0.7]),
        ("p70", [0.14, 0.48, 0.68, 0.78]),
        ("p90", [0.18, 0.56, 0.76, 0.86]),
        ("proportional", [0.02, 0.32, 0.64, 0.9]),  # a = 0.1, 0.3, 0.6, min(1, 9)
        ("classifier_heavy", [0.0, 0.2, 0.4, 0.9]),
        ("feature_heavy", [0.1, 0.4, 0.8, 0.7]),
    ],
)
def test_sparsities_by_hand(ten: dict[str, Strategy], name: str, expected: list[float]) -> None:
    assert apply(ten[name]) == pytest.approx(expected, abs=1e-12)


def test_balanced_is_exactly_p50(ten: dict[str, Strategy]) -> None:
    assert apply(ten["balanced"]) == apply(ten["p50"])


def test_proportional_position_is_at_most_one(ten: dict[str, Strategy]) -> None:
    assert list(positions(ten["proportional"], LAYERS, {}).values()) == pytest.approx([0.1, 0.3, 0.6, 1.0])


def test_proportional_to_the_average_layer() -> None:
    strategy = Strategy("text", proportional=0.1, reference="average")
    assert list(positions(strategy, LAYERS, {}).values()) == pytest.approx([0.004, 0.012, 0.024, 0.36], abs=1e-12)
    assert apply(strategy) == pytest.approx([0.0008, 0.2048, 0.4096, 0.644], abs=1e-12)


def test_group_overrides_proportional() -> None:
    strategy = Strategy("mixed", groups={"late": 0.25}, proportional=10.0)
    assert list(positions(strategy, LAYERS, GROUPS).values()) == pytest.approx([0.1, 0.3, 0.6, 0.25])


def test_empty_group_leaves_every_layer_at_the_common_position() -> None:
    strategy = Strategy("feature_heavy", position=0.5, groups={"feature": 1.0})
    assert set(positions(strategy, LAYERS, {"feature": frozenset()}).values()) == {0.5}


def test_global_sparsity_is_weighted_by_size(ten: dict[str, Strategy]) -> None:
    sparsities = layer_sparsities(ten["balanced"], LAYERS, RANGES, GROUPS)
    assert global_sparsity(LAYERS, sparsities) == pytest.approx((1 + 12 + 36 + 630) / 1000)


# --- errors ---


def test_unknown_group_names_the_nearest() -> None:
    with pytest.raises(MmpError, match=r"strategy=s: .*no group 'latte'; did you mean 'late'"):
        positions(Strategy("s", groups={"latte": 1.0}), LAYERS, GROUPS)


def test_a_group_without_layers_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = positions(Strategy("s", position=0.5, groups={"late": 1.0}), LAYERS, {"late": frozenset()})
    assert set(found.values()) == {0.5}
    assert "strategy=s: group 'late'" in caplog.text


@pytest.mark.parametrize("value", [1.2, -0.01, float("nan")])
def test_position_outside_the_unit_interval_is_refused(value: float) -> None:
    with pytest.raises(MmpError, match=rf"strategy=s: position is {value}"):
        Strategy("s", position=value)
    with pytest.raises(MmpError, match=rf"strategy=s: late is {value}"):
        Strategy("s", groups={"late": value})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_proportional_must_be_positive(value: float) -> None:
    with pytest.raises(MmpError, match="must be positive"):
        Strategy("s", proportional=value)


def test_unknown_reference_names_the_nearest() -> None:
    with pytest.raises(MmpError, match=r"'averge'; did you mean 'average'"):
        Strategy("s", proportional=0.1, reference="averge")


# --- properties of any ranges ---

fractions = st.floats(0, 1)
random_ranges = st.lists(
    st.tuples(st.integers(1, 10**6), fractions, fractions).map(lambda t: (t[0], *sorted(t[1:]))),
    min_size=1,
    max_size=6,
)


@given(random_ranges)
def test_sparsity_stays_in_range_and_rises_with_the_position(ten: dict[str, Strategy], drawn: list) -> None:
    layers = sized(*(size for size, _, _ in drawn))
    ranges = {layer.name: Range(lo, hi) for layer, (_, lo, hi) in zip(layers, drawn, strict=True)}
    groups = {"late": frozenset({"0"}), "feature": frozenset({layers[-1].name})}
    results = {name: layer_sparsities(ten[name], layers, ranges, groups) for name in NAMES}
    for sparsities in results.values():
        assert all(ranges[name].lo <= s <= ranges[name].hi for name, s in sparsities.items())
    for lower, higher in pairwise(STEPS):
        assert all(results[lower][name] <= results[higher][name] for name in ranges)


# --- budgets ---


def test_budget_shifts_by_one_offset_by_hand() -> None:
    layers = sized(100, 300)
    # 0.1 and 0.5 are 0.4 in all; everything 0.2 higher is 0.6.
    assert Shift(layers).meet({"0": 0.1, "1": 0.5}, 0.6) == pytest.approx({"0": 0.3, "1": 0.7})


def test_budget_clips_at_zero_and_shifts_other_layers_more() -> None:
    layers = sized(100, 100)
    assert Shift(layers).meet({"0": 0.1, "1": 0.5}, 0.15) == pytest.approx({"0": 0.0, "1": 0.3})


def test_budget_clips_at_the_ceiling_and_shifts_other_layers_more() -> None:
    layers = sized(100, 100)
    assert Shift(layers).meet({"0": 0.5, "1": 0.9}, 0.88) == pytest.approx({"0": 0.78, "1": 0.98})


def test_budget_does_not_shift_fixed_layers() -> None:
    layers = sized(100, 300)
    shifted = Shift(layers, fixed=frozenset({"0"})).meet({"0": 0.05, "1": 0.5}, 0.6125)
    assert shifted["0"] == 0.05
    assert shifted["1"] == pytest.approx(0.8)


def test_budget_already_met_changes_nothing() -> None:
    assert Shift(sized(100, 100)).meet({"0": 0.25, "1": 0.75}, 0.5) == pytest.approx({"0": 0.25, "1": 0.75})


@pytest.mark.parametrize("target", [0.04, 0.95, float("nan")])
def test_budget_out_of_reach_is_refused_with_the_limits(target: float) -> None:
    # The fixed half stays at 0.1; the other goes from 0 to 0.98.
    with pytest.raises(MmpError, match=re.escape(f"budget={target:g} is out of reach")) as raised:
        Shift(sized(100, 100), fixed=frozenset({"0"})).meet({"0": 0.1, "1": 0.5}, target)
    assert "from 0.0500 to 0.5400" in str(raised.value)


drawn_layers = st.lists(
    st.tuples(st.integers(1, 10**7), st.floats(0, BUDGET_CEILING), st.booleans()), min_size=1, max_size=8
)


@given(drawn_layers, st.floats(0.001, 0.999))
@example([(7, 0.0, False), (7, BUDGET_CEILING, False)], 0.5)
def test_budget_in_reach_is_met_exactly(drawn: list[tuple[int, float, bool]], share: float) -> None:
    layers = sized(*(size for size, _, _ in drawn))
    start = {layer.name: s for layer, (_, s, _) in zip(layers, drawn, strict=True)}
    fixed = frozenset(layer.name for layer, (_, _, held) in zip(layers, drawn, strict=True) if held)
    if len(fixed) == len(layers):
        fixed -= {"0"}
    least = global_sparsity(layers, {**dict.fromkeys(start, 0.0), **{name: start[name] for name in fixed}})
    most = global_sparsity(layers, {**dict.fromkeys(start, BUDGET_CEILING), **{n: start[n] for n in fixed}})
    target = least + share * (most - least)

    shifted = Shift(layers, fixed).meet(start, target)

    assert abs(global_sparsity(layers, shifted) - target) < 1e-9
    assert all(shifted[name] == start[name] for name in fixed)
    moved = [name for name in start if name not in fixed]
    assert all(0.0 <= shifted[name] <= BUDGET_CEILING for name in moved)
    offsets = [shifted[name] - start[name] for name in moved if 0.0 < shifted[name] < BUDGET_CEILING]
    if offsets:
        assert max(offsets) - min(offsets) < 1e-12
        for name in moved:  # a layer is clipped if the common offset leads beyond its limit
            assert shifted[name] == pytest.approx(min(max(start[name] + offsets[0], 0.0), BUDGET_CEILING))


def test_budget_at_the_ceiling_is_in_reach() -> None:
    for size in range(1, 100):
        layers = sized(size, 100, 1000)
        shifted = Shift(layers).meet(dict.fromkeys("012", 0.5), BUDGET_CEILING)
        assert shifted == pytest.approx(dict.fromkeys("012", BUDGET_CEILING))


@given(drawn_layers, st.floats(0.001, 0.999))
def test_whole_weights_add_up_to_the_budget(drawn: list[tuple[int, float, bool]], share: float) -> None:
    layers = sized(*(size for size, _, _ in drawn))
    start = {layer.name: s for layer, (_, s, _) in zip(layers, drawn, strict=True)}
    fixed = frozenset(layer.name for layer, (_, _, held) in zip(layers, drawn, strict=True) if held)
    shift = Shift(layers, fixed)
    least, most = shift.reachable(start)
    shifted = shift.meet(start, least + share * (most - least))

    whole = shift.whole_weights(shifted)

    size = {layer.name: layer.size for layer in layers}
    pruned = {name: pruned_count(s, size[name]) for name, s in whole.items()}
    inside = [name for name, s in shifted.items() if name not in fixed and 0.0 < s < BUDGET_CEILING]
    for name, s in whole.items():
        assert 0.0 <= s <= 1.0
        if name not in inside:
            assert s == shifted[name]
        assert abs(pruned[name] - shifted[name] * size[name]) <= len(layers) + 1  # floor removes less than one each
    most = {name: min(pruned_count(BUDGET_CEILING, n), n - 1) for name, n in size.items()}
    if any(pruned[name] < most[name] for name in inside):
        assert sum(pruned.values()) == round(sum(s * size[name] for name, s in shifted.items()))


def test_whole_weights_by_hand() -> None:
    # 1.5 + 2.7 + 3.9 weights are 8.1: floor makes them 1 + 2 + 3, and the two largest fractions round up.
    whole = Shift(sized(10, 10, 10)).whole_weights({"0": 0.15, "1": 0.27, "2": 0.39})
    assert whole == pytest.approx({"0": 0.1, "1": 0.3, "2": 0.4})
    assert [pruned_count(s, 10) for s in whole.values()] == [1, 3, 4]


def test_whole_weights_leave_every_layer_a_weight() -> None:
    layers = sized(9, 270, 77_231)
    shift = Shift(layers)
    for percent in range(50, 98):
        whole = shift.whole_weights(shift.meet({"0": 0.9, "1": 0.5, "2": 0.6}, percent / 100))
        assert all(pruned_count(whole[layer.name], layer.size) < layer.size for layer in layers)


def test_a_budget_shifts_no_layer_beyond_the_ceiling() -> None:
    shift = Shift(sized(100, 100), ceiling=0.5)
    assert shift.meet({"0": 0.1, "1": 0.4}, 0.45) == pytest.approx({"0": 0.4, "1": 0.5})
    with pytest.raises(MmpError, match=r"to 0\.5000"):
        shift.meet({"0": 0.1, "1": 0.4}, 0.6)
