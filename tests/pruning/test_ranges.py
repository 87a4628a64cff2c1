from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmp.errors import MmpError
from mmp.pruning.layers.layer import ROLES, Layer
from mmp.pruning.ranges import (
    Constraints,
    Range,
    Rule,
    RuleTable,
    Selector,
    constrain,
    observed_ranges,
    resolve_groups,
    rule_ranges,
)


def layer(name: str, role: str = "conv", *, stage: int | None = None, depth: float = 0.0, size: int = 20_000) -> Layer:
    return Layer(name, "", role, stage, depth, (size,))


def names(selector: Selector, layers: list[Layer]) -> list[str]:
    return [chosen.name for chosen in selector.select(layers)]


# --- Range ---


@pytest.mark.parametrize(("lo", "hi"), [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_range_refuses_other_than_an_interval_of_sparsities(lo: float, hi: float) -> None:
    with pytest.raises(MmpError, match="is not a sparsity range"):
        Range(lo, hi)


def test_range_interpolates() -> None:
    assert Range(0.2, 0.6).at(0.25) == pytest.approx(0.3)


def test_range_is_exact_at_its_ends() -> None:
    for lo in range(100):
        for hi in range(lo, 101):
            allowed = Range(lo / 100, hi / 100)
            assert (allowed.at(0.0), allowed.at(1.0)) == (lo / 100, hi / 100)


# --- Selector ---


def test_selector_without_fields_means_every_layer() -> None:
    assert names(Selector(), [layer("a"), layer("b", "other")]) == ["a", "b"]


def test_role_and_stage_must_both_hold() -> None:
    layers = [layer("a", stage=0), layer("b", stage=1), layer("c", "attn_qkv", stage=1), layer("d")]
    assert names(Selector(role=("conv",)), layers) == ["a", "b", "d"]
    assert names(Selector(stage=(0, 1)), layers) == ["a", "b", "c"]
    assert names(Selector(role=("conv",), stage=(1,)), layers) == ["b"]


def test_depth_is_half_open_except_at_the_end() -> None:
    layers = [layer("a", depth=0.0), layer("b", depth=0.5), layer("c", depth=1.0)]
    assert names(Selector(depth=(0.0, 0.5)), layers) == ["a"]
    assert names(Selector(depth=(0.5, 1.0)), layers) == ["b", "c"]


def test_position_counts_the_selected_layers_only() -> None:
    # VGG: five convs at 0, 0.25, 0.5, 0.75, 1 of the large ones; the stem is too small to count.
    layers = [
        layer("stem", size=1728),
        *(layer(f"conv{i}") for i in range(5)),
        layer("fc", "classifier"),
    ]
    bands = [(0.0, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0)]
    found = [names(Selector(role=("conv",), min_size=10_000, position=band), layers) for band in bands]
    assert found == [["conv0", "conv1"], ["conv2"], ["conv3"], ["conv4"]]


def test_a_single_layer_has_position_zero() -> None:
    assert names(Selector(position=(0.0, 0.4)), [layer("a")]) == ["a"]
    assert names(Selector(position=(0.4, 1.0)), [layer("a")]) == []


def test_rank_orders_by_size_and_ties_by_place() -> None:
    layers = [layer("a", size=5), layer("b", size=9), layer("c", size=9), layer("d", size=1)]
    assert names(Selector(rank=(0, 1)), layers) == ["b"]
    assert names(Selector(rank=(1, 3)), layers) == ["a", "c"]  # in the given order, not by size
    assert names(Selector(rank=(3, 99)), layers) == ["d"]


def test_name_is_a_regular_expression_searched_anywhere() -> None:
    layers = [layer("blocks.1.attn.weight"), layer("blocks.11.mlp.weight")]
    assert names(Selector(name=r"\.1\."), layers) == ["blocks.1.attn.weight"]
    assert names(Selector(name="mlp|attn"), layers) == ["blocks.1.attn.weight", "blocks.11.mlp.weight"]


def test_min_size_is_the_fewest_weights() -> None:
    assert names(Selector(min_size=10), [layer("a", size=9), layer("b", size=10)]) == ["b"]


def test_unknown_role_names_the_nearest() -> None:
    with pytest.raises(MmpError, match=r"unknown role 'convs'; did you mean 'conv'"):
        Selector(role=("convs",))


# --- rule tables ---


def test_rules_give_each_layer_its_range() -> None:
    # The VGG table on three large convs and three classifier layers, percent / 100.
    layers = [
        layer("conv0"),
        layer("conv1"),
        layer("conv2"),
        layer("fc1", "classifier", size=90_000),
        layer("fc2", "classifier", size=100_000),
        layer("fc3", "classifier", size=40_960),
        layer("odd", "other"),
    ]
    table = RuleTable(
        "vgg",
        (
            Rule(Selector(role=("classifier",), rank=(0, 1)), Range(0.92, 0.98)),
            Rule(Selector(role=("classifier",), rank=(1, 2)), Range(0.88, 0.96)),
            Rule(Selector(role=("classifier",), rank=(2, 99)), Range(0.85, 0.95)),
            Rule(Selector(role=("conv",), position=(0.0, 0.4)), Range(0.40, 0.60)),
            Rule(Selector(role=("conv",), position=(0.4, 0.6)), Range(0.55, 0.70)),
            Rule(Selector(role=("conv",), position=(0.6, 1.0)), Range(0.75, 0.92)),
        ),
        default=Range(0.40, 0.70),
    )
    assert rule_ranges(layers, table) == {
        "conv0": Range(0.40, 0.60),
        "conv1": Range(0.55, 0.70),
        "conv2": Range(0.75, 0.92),
        "fc1": Range(0.88, 0.96),
        "fc2": Range(0.92, 0.98),
        "fc3": Range(0.85, 0.95),
        "odd": Range(0.40, 0.70),
    }


def test_overlapping_rules_are_an_error_that_names_both_and_the_layer() -> None:
    table = RuleTable(
        "mine",
        (
            Rule(Selector(role=("stem",)), Range(0, 0.3)),
            Rule(Selector(role=("conv",)), Range(0, 0.5)),
            Rule(Selector(name="b"), Range(0, 0.4)),
        ),
    )
    with pytest.raises(MmpError, match=r"ranges=mine: rules 2 and 3 both match layer 'b' \(conv\)"):
        rule_ranges([layer("s", "stem"), layer("a"), layer("b")], table)


def test_unmatched_rule_is_an_error_in_a_strict_table_only() -> None:
    rules = (Rule(Selector(role=("conv",)), Range(0, 0.5)), Rule(Selector(role=("stem",)), Range(0, 0.3)))
    with pytest.raises(MmpError, match=r"ranges=mine: rule 2 \(role=\('stem',\)\) matches no layer"):
        rule_ranges([layer("a")], RuleTable("mine", rules))
    assert rule_ranges([layer("a")], RuleTable("mine", rules, strict=False)) == {"a": Range(0, 0.5)}


def test_layer_without_rule_or_default_is_an_error_that_names_it() -> None:
    table = RuleTable("mine", (Rule(Selector(role=("conv",)), Range(0, 0.5)),))
    with pytest.raises(MmpError, match=r"ranges=mine: no rule matches layer 'b' \(other\)"):
        rule_ranges([layer("a"), layer("b", "other")], table)


# --- the generic table ---


def selector(entry: dict) -> Selector:
    return Selector(
        role=tuple(entry.get("role", ())),
        stage=tuple(entry.get("stage", ())),
        depth=tuple(entry["depth"]) if "depth" in entry else None,
    )


def test_generic_table_gives_every_role_at_every_depth_one_range(conf: Path) -> None:
    content = OmegaConf.to_container(OmegaConf.load(conf / "ranges" / "generic.yaml"))
    layers = [layer(f"{role}.{i}", role, depth=i / 20) for role in ROLES for i in range(21)]
    rules = tuple(Rule(selector(entry), Range(*entry["range"])) for entry in content["rules"])
    table = RuleTable("generic", rules, Range(*content["default"]), content["strict"])

    ranges = rule_ranges(layers, table)  # raises where two rules overlap

    assert set(ranges) == {layer.name for layer in layers}
    matched = {chosen.role for rule in rules for chosen in rule.select.select(layers)}
    assert matched == set(ROLES) - {"other"}  # only `other` is left to the default
    for role in set(ROLES) - {"other"}:  # no depth falls between the rules of a role
        found = [chosen for rule in rules for chosen in rule.select.select(layers) if chosen.role == role]
        assert len(found) == 21
    assert not table.strict


def test_generic_table_defines_the_groups_that_strategies_use(conf: Path) -> None:
    content = OmegaConf.to_container(OmegaConf.load(conf / "ranges" / "generic.yaml"))
    layers = [
        layer("conv", depth=0.9),
        layer("qkv", "attn_qkv"),
        layer("fc1", "mlp_fc1"),
        layer("head", "classifier"),
    ]
    groups = {name: [selector(entry) for entry in entries] for name, entries in content["groups"].items()}
    resolved = resolve_groups(layers, groups)
    assert set(resolved) == {"late", "feature"}
    assert {"head", "fc1"} <= resolved["late"]
    assert {"qkv", "conv"} <= resolved["feature"]


# --- observed ranges ---


def test_observed_range_is_minimum_and_maximum() -> None:
    seen = [{"a": 0.5, "b": 0.9}, {"a": 0.7, "b": 0.9}, {"a": 0.6, "b": 0.1}]
    assert observed_ranges([layer("a"), layer("b")], seen) == {"a": Range(0.5, 0.7), "b": Range(0.1, 0.9)}


def test_observed_range_without_observations_is_an_error() -> None:
    with pytest.raises(MmpError, match="at least one criterion and one target"):
        observed_ranges([layer("a")], [])


# --- constraints ---


def constrained(one: Layer, constraints: Constraints, lo: float = 0.4, hi: float = 1.0) -> Range:
    return constrain([one], {one.name: Range(lo, hi)}, constraints)[one.name]


@pytest.mark.parametrize(("size", "expected"), [(9_999, Range(0.0, 0.1)), (10_000, Range(0.4, 0.98))])
def test_layers_under_ten_thousand_weights_are_small(size: int, expected: Range) -> None:
    assert constrained(layer("a", size=size), Constraints()) == expected


def test_patch_embedding_has_its_own_range_unless_left_to_the_table() -> None:
    one = layer("a", "patch_embed")
    assert constrained(one, Constraints()) == Range(0.15, 0.30)
    assert constrained(one, Constraints(patch_embed=None), 0.0, 0.1) == Range(0.0, 0.1)


def test_the_10k_rule_takes_precedence_over_the_patch_embedding() -> None:
    assert constrained(layer("a", "patch_embed", size=9_999), Constraints()) == Range(0.0, 0.1)


def test_ten_thousand_rule_can_be_off() -> None:
    assert constrained(layer("a", size=1), Constraints(small_below=0), 0.0, 0.3) == Range(0.0, 0.3)


def test_ceiling_cuts_both_ends() -> None:
    assert constrained(layer("a"), Constraints(ceiling=0.7), 0.8, 0.9) == Range(0.7, 0.7)
    assert constrained(layer("a"), Constraints(), 0.5, 0.97) == Range(0.5, 0.97)


# --- groups ---


def test_group_is_the_union_of_its_selectors() -> None:
    layers = [layer("a", depth=0.0), layer("b", depth=1.0), layer("c", "classifier", depth=1.0)]
    groups = {
        "late": [Selector(role=("classifier",)), Selector(depth=(0.5, 1.0))],
        "first": [Selector(name="^a$")],
    }
    assert resolve_groups(layers, groups) == {"late": {"b", "c"}, "first": {"a"}}


def test_empty_group_is_kept() -> None:
    assert resolve_groups([layer("a")], {"late": [Selector(role=("classifier",))]}) == {"late": frozenset()}
