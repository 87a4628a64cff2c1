"""Patterns of masks: by hand, as properties, in plans and budgets, and in torch's sparse kernels."""

from __future__ import annotations

import json
import math
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import timm
import torch
from commands import QUICK, command
from composing import composed
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mmp.config.identity import identity, protocol_of, run_name, run_title, settings_of
from mmp.config.matching import StrategyRun, matched_weights
from mmp.config.objects import build_strategy
from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.errors import MmpError
from mmp.models.networks import build_skeleton
from mmp.plan import make_plan
from mmp.pruning.budgets import Shift, global_sparsity, with_pattern
from mmp.pruning.counts import pruned_count, sparsity_of
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.prunable import prunable_layers
from mmp.pruning.masks import load_masks, make_masks
from mmp.pruning.patterns import UNSTRUCTURED, Pattern, WeightShape
from mmp.pruning.plan_views import as_markdown
from mmp.pruning.ranges import Range, allow_pattern
from mmp.pruning.reconstruction.reconstruct import reconstruct
from mmp.pruning.topk import keep_highest, keep_patterned, satisfies
from mmp.runs.allocation import Allocator

TWO_FOUR = Pattern.parse("2:4")


def bits(mask: Tensor) -> list[str]:
    return ["".join(str(int(bit)) for bit in row) for row in mask.flatten(1)]


def layer(name: str, *shape: int) -> Layer:
    return Layer(name, "", "conv", None, 0.0, shape)


# --- parsing and shapes ---


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("none", UNSTRUCTURED),
        ("2:4", Pattern(kept=2, of=4)),
        ("1:16", Pattern(kept=1, of=16)),
        ("4x1", Pattern(rows=4, columns=1)),
        ("16x32", Pattern(rows=16, columns=32)),
    ],
)
def test_a_pattern_is_written_as_it_is_parsed(text: str, pattern: Pattern) -> None:
    assert Pattern.parse(text) == pattern
    assert str(pattern) == text


@pytest.mark.parametrize(
    "text", ["", "2", "2:", "2:4:8", "0:4", "02:4", "4x", "x4", "4x0", "2:4x1", "124", "-1:4", "a:b"]
)
def test_other_texts_are_refused_with_the_valid_forms(text: str) -> None:
    with pytest.raises(
        MmpError, match=rf"pattern={text}: no such pattern; choose none, N:M such as 2:4, or blocks .*4x1"
    ):
        Pattern.parse(text)


@pytest.mark.parametrize("text", ["4:4", "5:4", "1x1", "1:1"])
def test_a_pattern_that_prunes_nothing_is_refused(text: str) -> None:
    with pytest.raises(MmpError, match=f"pattern={text} prunes nothing by itself"):
        Pattern.parse(text)


@pytest.mark.parametrize(
    ("text", "shape", "fits"),
    [
        ("2:4", (3, 8), True),
        ("2:4", (3, 6), False),
        ("2:4", (8, 4, 3, 3), True),
        ("2:4", (8, 3, 4, 4), False),  # neighbours are input channels: three are not a multiple of four
        ("2:4", (64, 1, 3, 3), False),  # depthwise
        ("2:4", (8,), False),
        ("4x2", (8, 6), True),
        ("4x2", (6, 6), False),
        ("4x2", (8, 5), False),
    ],
)
def test_a_shape_fits_if_it_divides_into_whole_groups_and_blocks(text: str, shape: tuple[int, ...], fits: bool) -> None:
    assert Pattern.parse(text).fits(WeightShape(shape)) == fits


@pytest.mark.parametrize(
    ("text", "shape", "groups", "fits"),
    [
        ("4x1", (64, 1, 3, 3), 1, True),  # a stem of grey images
        ("4x1", (64, 1, 3, 3), 64, False),  # depthwise: one output per group
        ("4x1", (64, 1, 3, 3), 16, True),
        ("4x2", (12, 4, 3, 3), 2, False),  # six outputs per group: the second block of four would cross into the next
        ("3x2", (12, 4, 3, 3), 2, True),
        ("2:4", (12, 4, 3, 3), 2, True),  # the inputs of one output are in one group
        ("2:4", (12, 2, 3, 3), 2, False),
    ],
)
def test_blocks_stay_within_the_groups_of_a_convolution(
    text: str, shape: tuple[int, ...], groups: int, fits: bool
) -> None:
    pattern, weight = Pattern.parse(text), WeightShape(shape, groups)
    assert pattern.fits(weight) == fits
    assert pattern.takes(weight, 0.75) == fits
    assert (pattern.whole(weight, 0.7001) != 0.7001) == (fits and pattern.unit > 1)
    (mask,) = make_masks({"a": torch.rand(shape)}, {"a": 0.75}, pattern, groups={"a": groups}).values()
    assert satisfies(mask, pattern, groups) == fits
    assert int((~mask).sum()) == (0.75 * math.prod(shape) // (pattern.unit if fits else 1)) * (
        pattern.unit if fits else 1
    )


def test_ranges_and_budgets_respect_the_groups_of_layers() -> None:
    net = nn.Sequential(nn.Conv2d(8, 64, 1), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 12, 3, groups=2))
    layers, pattern = prunable_layers(net), Pattern.parse("4x1")
    assert [one.groups for one in layers] == [1, 64, 2]
    raised = allow_pattern(layers, {one.name: Range(0.0, 0.9) for one in layers}, TWO_FOUR)
    assert [raised[one.name].lo for one in layers] == [0.5, 0.0, 0.5]
    shares = Shift(layers, pattern=pattern).whole_weights(dict.fromkeys((one.name for one in layers), 0.5001))
    masks = make_masks(
        {one.name: torch.rand(one.shape) for one in layers}, shares, pattern, groups={n.name: n.groups for n in layers}
    )
    held = [satisfies(masks[one.name], pattern, one.groups) for one in layers]
    assert held == [True, False, False]


def test_a_layer_takes_n_of_m_from_the_lowest_possible_sparsity_on() -> None:
    eight, six = WeightShape((3, 8)), WeightShape((3, 6))
    assert TWO_FOUR.least(eight) == 0.5
    assert TWO_FOUR.takes(eight, 0.5)
    assert not TWO_FOUR.takes(eight, 0.4999)
    assert not TWO_FOUR.takes(six, 0.9)
    assert TWO_FOUR.least(six) == 0.0
    assert Pattern.parse("4x1").takes(WeightShape((4, 3)), 0.0)  # blocks do so at any sparsity


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40))
def test_the_least_sparsity_prunes_exactly_what_the_pattern_forces(
    n: int, more: int, outputs: int, groups: int
) -> None:
    pattern = Pattern(kept=n, of=n + more)
    weight = WeightShape((outputs, groups * (n + more)))
    forced = pattern.forced(weight)
    assert pruned_count(pattern.least(weight), math.prod(weight.shape)) == forced == outputs * groups * more
    assert pattern.takes(weight, pattern.least(weight))


# --- masks by hand ---


def test_two_of_four_keeps_the_two_highest_of_every_four() -> None:
    scores = torch.tensor([[4.0, 1, 3, 2, 9, 8, 7, 6], [1, 1, 1, 1, 0, 5, 0, 5]])
    (mask,) = make_masks({"a": scores}, {"a": 0.5}, TWO_FOUR).values()
    assert bits(mask) == ["10101100", "00110101"]  # of equal scores, the lower index is pruned
    (unstructured,) = make_masks({"a": scores}, {"a": 0.5}).values()
    assert bits(unstructured) == ["10101111", "00000101"]


def test_beyond_the_pattern_the_lowest_kept_weights_are_pruned() -> None:
    scores = torch.tensor([[4.0, 1, 3, 2, 9, 8, 7, 6]])
    assert bits(keep_patterned(scores, 6, TWO_FOUR)) == ["00001100"]
    assert bits(keep_patterned(scores, 5, TWO_FOUR)) == ["10001100"]


def test_below_the_pattern_the_lowest_weights_that_it_prunes_are_pruned() -> None:
    scores = torch.tensor([[4.0, 1, 3, 2, 0, 0, 0, 0.5]])
    assert bits(keep_patterned(scores, 1, TWO_FOUR)) == ["11110111"]
    assert bits(keep_patterned(scores, 3, TWO_FOUR)) == ["10110011"]  # not the third zero, which the pattern keeps
    assert bits(keep_patterned(scores, 4, TWO_FOUR)) == ["10100011"]


def test_neighbours_in_a_convolution_are_input_channels_at_one_kernel_position() -> None:
    scores = torch.tensor([[[1.0, 8], [2, 7], [3, 6], [4, 5]]])  # (1 output, 4 inputs, kernel of 2)
    mask = keep_patterned(scores, 4, TWO_FOUR)
    assert mask.tolist() == [[[False, True], [False, True], [True, False], [True, False]]]
    assert satisfies(mask, TWO_FOUR)


def test_blocks_are_pruned_whole_by_the_sum_of_their_scores() -> None:
    scores = torch.tensor([[9.0, 3, 0, 0], [0, 3, 8, 1], [1, 1, 2, 2], [1, 1, 2, 2]])
    two = Pattern.parse("2x2")  # sums 15, 9, 4, 8
    (mask,) = make_masks({"a": scores}, {"a": 0.6}, two).values()  # floor(9.6) weights are two blocks
    assert bits(mask) == ["1111", "1111", "0000", "0000"]
    rows = Pattern.parse("4x1")  # sums 11, 8, 12, 5
    assert bits(keep_patterned(scores, 11, rows)) == ["1010"] * 4
    assert bits(keep_patterned(torch.ones(4, 4), 7, rows)) == ["0111"] * 4  # of equal sums, the lower index is pruned


def test_blocks_of_a_convolution_are_at_one_kernel_position() -> None:
    scores = torch.arange(8.0).reshape(2, 2, 2)  # (outputs, inputs, kernel); sums 0+2+4+6 and 1+3+5+7
    assert keep_patterned(scores, 4, Pattern.parse("2x2"))[..., 0].any() == torch.tensor(False)


def test_a_layer_that_cannot_take_the_pattern_is_pruned_weight_by_weight() -> None:
    scores = {"odd": torch.rand(3, 6), "dense": torch.rand(3, 8), "flat": torch.rand(8)}
    sparsities = {"odd": 0.7, "dense": 0.3, "flat": 0.5}
    assert make_masks(scores, sparsities, TWO_FOUR) == make_masks(scores, sparsities)


@pytest.mark.parametrize(
    ("text", "rows", "holds"),
    [
        ("2:4", [[1, 1, 0, 0, 0, 1, 0, 1]], True),
        ("2:4", [[1, 0, 0, 0, 0, 0, 0, 0]], True),
        ("2:4", [[1, 1, 1, 0, 0, 0, 0, 0]], False),
        ("2:4", [[1, 1, 0, 0, 1, 0]], False),
        ("2x2", [[1, 1, 0, 0], [1, 1, 0, 0]], True),
        ("2x2", [[1, 1, 1, 1], [1, 1, 1, 1]], True),
        ("2x2", [[1, 1, 0, 0], [1, 0, 0, 0]], False),
    ],
)
def test_satisfies_by_hand(text: str, rows: list[list[int]], holds: bool) -> None:
    assert satisfies(torch.tensor(rows, dtype=torch.bool), Pattern.parse(text)) == holds


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(MmpError, match="layer 'a': scores hold NaN or infinity"):
        make_masks({"a": torch.tensor([[value, 1, 2, 3]])}, {"a": 0.5}, TWO_FOUR)


# --- properties ---

values = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0])
patterns = st.one_of(
    st.integers(2, 5).flatmap(lambda m: st.integers(1, m - 1).map(lambda n: Pattern(kept=n, of=m))),
    st.tuples(st.integers(1, 3), st.integers(2, 3)).map(lambda b: Pattern(rows=b[0], columns=b[1])),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Pattern, Tensor]:
    pattern = draw(patterns)
    outputs, groups, kernel = (draw(st.integers(1, 3)) for _ in range(3))
    shape = (outputs * pattern.rows, groups * pattern.of * pattern.columns, kernel)
    flat = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    return pattern, torch.tensor(flat).reshape(shape)


@pytest.mark.slow
@given(cases(), st.integers(0, 64))
def test_a_mask_that_takes_a_pattern_satisfies_it_and_its_count(case: tuple[Pattern, Tensor], part: int) -> None:
    pattern, scores = case
    weight = WeightShape(scores.shape)
    least = pattern.least(weight)
    sparsity = least + part / 64 * (1 - least)
    (mask,) = make_masks({"a": scores}, {"a": sparsity}, pattern).values()
    assert satisfies(mask, pattern)
    gone = int((~mask).sum())
    wanted = pruned_count(sparsity, scores.numel())
    assert gone == wanted // pattern.unit * pattern.unit
    assert pattern.whole(weight, sparsity) == pytest.approx(gone / scores.numel(), abs=1 / scores.numel())
    assert pruned_count(pattern.whole(weight, sparsity), scores.numel()) == gone


@pytest.mark.slow
@given(cases())
def test_masks_of_ascending_numbers_contain_each_other(case: tuple[Pattern, Tensor]) -> None:
    pattern, scores = case
    masks = [keep_patterned(scores, n, pattern) for n in range(scores.numel() + 1)]
    assert masks[0].all()
    assert not masks[-1].any()
    assert all(not (later & ~earlier).any() for earlier, later in pairwise(masks))


@pytest.mark.slow
@given(st.lists(values, min_size=8, max_size=8), st.integers(4, 8))
def test_no_other_mask_with_the_pattern_keeps_higher_scores(flat: list[float], pruned: int) -> None:
    scores = torch.tensor(flat).reshape(1, 8)
    best = 0.0
    for kept in combinations(range(8), 8 - pruned):
        mask = torch.zeros(1, 8, dtype=torch.bool)
        mask[0, list(kept)] = True
        if satisfies(mask, TWO_FOUR):
            best = max(best, float(scores[mask].sum()))
    assert float(scores[keep_patterned(scores, pruned, TWO_FOUR)].sum()) == best


@pytest.mark.slow
@given(cases(), st.floats(0, 1), st.integers(1, 4))
def test_masks_of_a_schedule_end_at_the_final_ones(case: tuple[Pattern, Tensor], sparsity: float, steps: int) -> None:
    pattern, scores = case
    ramp = [make_masks({"a": scores}, {"a": sparsity}, pattern, (i + 1) / steps) for i in range(steps)]
    assert all(later.contains(earlier) for earlier, later in pairwise(ramp))
    assert ramp[-1] == make_masks({"a": scores}, {"a": sparsity}, pattern)


@given(cases())
def test_without_a_pattern_weights_are_pruned_in_the_order_of_scores(case: tuple[Pattern, Tensor]) -> None:
    _, scores = case
    assert torch.equal(
        keep_patterned(scores, scores.numel() // 2, UNSTRUCTURED), keep_highest(scores, scores.numel() // 2)
    )


# --- ranges, budgets and criteria ---


def test_ranges_that_reach_the_pattern_start_at_its_lowest_sparsity() -> None:
    layers = (layer("a", 4, 8), layer("b", 4, 8), layer("c", 4, 6), layer("d", 4, 8))
    ranges = {"a": Range(0.3, 0.8), "b": Range(0.1, 0.4), "c": Range(0.3, 0.8), "d": Range(0.6, 0.9)}
    allowed = allow_pattern(layers, ranges, TWO_FOUR)
    assert allowed == {**ranges, "a": Range(0.5, 0.8)}
    assert allow_pattern(layers, ranges, UNSTRUCTURED) == allow_pattern(layers, ranges, Pattern.parse("4x1")) == ranges


def test_a_budget_leaves_every_layer_in_its_pattern() -> None:
    shift = Shift((layer("a", 10, 8), layer("b", 10, 8)), pattern=TWO_FOUR)
    start = {"a": 0.6, "b": 0.4}
    assert shift.meet(start, 0.3) == pytest.approx({"a": 0.5, "b": 0.1})
    with pytest.raises(MmpError, match=r"global sparsities from 0\.2500 to 0\.9800"):
        shift.meet(start, 0.2)


def test_whole_blocks_meet_a_budget_to_less_than_one() -> None:
    layers, blocks = (layer("a", 4, 5), layer("b", 4, 5), layer("c", 3, 5)), Pattern.parse("4x1")
    sparsities = {"a": 0.5, "b": 0.55, "c": 0.4}
    whole = Shift(layers, pattern=blocks).whole_weights(sparsities)
    pruned = {one.name: pruned_count(whole[one.name], one.size) for one in layers}
    assert pruned == {
        "a": 8,
        "b": 12,
        "c": 7,
    }  # 27 in all; floor took the larger part of a block from b; c has no blocks


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.floats(0.05, 0.9)), min_size=1, max_size=5),
    st.sampled_from(["2:4", "1:4", "4x1", "2x2"]),
)
def test_with_pattern_keeps_the_global_sparsity_of_a_ranking(drawn: list[tuple[int, int, float]], text: str) -> None:
    pattern = Pattern.parse(text)
    layers = tuple(layer(str(i), 4 * a, 4 * b) for i, (a, b, _) in enumerate(drawn))
    sparsities = {str(i): s for i, (*_, s) in enumerate(drawn)}
    least = global_sparsity(layers, {one.name: pattern.least(one) for one in layers})
    wanted = global_sparsity(layers, sparsities)
    if wanted < least:
        with pytest.raises(MmpError, match="out of reach"):
            with_pattern(layers, sparsities, pattern)
        return
    found = with_pattern(layers, sparsities, pattern)
    assert all(pattern.takes(one, found[one.name]) for one in layers)
    pruned = sum(pruned_count(found[one.name], one.size) for one in layers)
    assert abs(pruned - wanted * sum(one.size for one in layers)) <= pattern.unit
    assert all(pattern.whole(one, found[one.name]) == found[one.name] for one in layers)


def test_sparsity_of_is_the_inverse_of_the_count() -> None:
    assert all(pruned_count(sparsity_of(k, n), n) == k for n in range(1, 60) for k in range(n + 1))


# --- plans ---


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 80, 3), nn.BatchNorm2d(80))
        self.fc = nn.Linear(80, 10)


SMALL = {"embed_dim": (64, 96, 128), "key_dim": 16, "num_heads": (2, 3, 4), "depth": (1, 1, 1)}


@pytest.mark.parametrize("text", ["2:4", "4x4", "4x1", "1:4"])
@pytest.mark.parametrize("budget", [None, 0.8])
def test_a_plan_states_the_counts_of_the_masks(text: str, budget: float | None) -> None:
    model, pattern = timm.create_model("levit_128s", num_classes=12, **SMALL), Pattern.parse(text)
    plan = make_plan(model, budget=budget, pattern=text)
    weights = dict(model.named_parameters())
    for strategy in ("conservative", "p70"):
        sparsities = plan.sparsities[strategy]
        masks = make_masks({n: weights[n].detach().abs() for n in sparsities}, sparsities, pattern)
        assert sum(masks.pruned.values()) == plan.pruned[strategy]
        stated = sum(one.size for one in plan.layers if satisfies(masks[one.name], pattern))
        assert plan.summary(strategy)["patterned"] == stated / masks.total > 0.5
        if budget:
            assert 0 <= round(budget * masks.total) - plan.pruned[strategy] < pattern.unit


def test_a_plan_shows_which_layers_have_the_pattern_and_why_others_do_not() -> None:
    text = as_markdown(make_plan(Net(), pattern="2:4"))
    assert "ranges generic, pattern 2:4" in text
    rows = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if ".weight" in line}
    assert rows["body.0.weight"] == "no: shape"
    assert rows["body.2.weight"] == "2:4"
    assert rows["fc.weight"] == "no: range"
    assert "in 2:4 (%)" in text


def test_a_plan_without_a_pattern_does_not_mention_patterns() -> None:
    plan = make_plan(Net())
    assert "pattern" not in json.dumps(plan.to_dict())
    assert "pattern" not in as_markdown(plan)


# --- configuration ---


def checked(config: PruneConfig) -> None:
    Allocator.of(config, build_strategy(config.strategy)).check_feasible(build_skeleton(config.model))


@pytest.mark.parametrize("name", ["prune", "plan"])
@pytest.mark.parametrize("text", ["2:4", "1:4", "4x1", "none"])
def test_the_command_line_accepts_a_pattern_as_it_is_written(text: str, name: str) -> None:
    assert validate(composed(f"pattern={text}", name=name)).pattern == text


def test_an_unknown_pattern_is_refused() -> None:
    with pytest.raises(MmpError, match=r"pattern=24: no such pattern; choose none, N:M such as 2:4"):
        validate(composed("pattern=24"))


@pytest.mark.slow
def test_a_pattern_that_no_layer_can_take_is_refused_before_training() -> None:
    with pytest.raises(MmpError, match=r"pattern=1x7 fits the shape of no layer of this model: .* divisible by 7;"):
        checked(validate(composed("pattern=1x7", "model=vit")))
    with pytest.raises(MmpError, match=r"pattern=1:64 needs layers that are 98\.4375 % sparse, but .*\(ranges generic"):
        checked(validate(composed("pattern=1:64", "model=vit")))
    checked(validate(composed("pattern=2:4", "model=vit")))
    with pytest.raises(MmpError, match=r"pattern=2:4 alone prunes 0\.49\d\d of the weights; raise the budget"):
        checked(validate(composed("pattern=2:4", "criterion=mag", "budget=0.2")))


def test_a_pattern_is_part_of_the_identity_of_a_run_and_none_is_not() -> None:
    plain, patterned = composed(), composed("pattern=2:4")
    identities = [identity(settings_of(cfg)) for cfg in (plain, patterned)]
    assert "pattern" not in identities[0]
    assert identities[1] == {**identities[0], "pattern": "2:4"}
    assert run_name(patterned).startswith("cnn-digits-magnitude-balanced-2of4-s0-")
    assert run_title(patterned) == "magnitude/balanced/2:4/s0"
    assert protocol_of(identities[0]) != protocol_of(identities[1])  # never compared with each other
    assert identity(settings_of(validate(plain)))["criterion"] == {"name": "none"}
    assert run_title(composed("criterion=lamp", "budget=0.9", "pattern=4x1")) == "lamp/0.9/4x1/s0"


def test_the_weights_of_the_same_pattern_are_matched(tmp_path: Path) -> None:
    known = {
        "status": "completed",
        "model": "cnn",
        "data": "digits",
        "signal": "magnitude",
        "strategy": "p50",
        "seed": 0,
    }
    for pattern, pruned in ((None, 7), ("2:4", 9)):
        folder = tmp_path / str(pattern).replace(":", "of")
        folder.mkdir()
        content = {**known, "ranges": "generic", "pattern": pattern, "layers": [{"pruned": pruned}]}
        (folder / "result.json").write_text(json.dumps(content))
    assert matched_weights(tmp_path, StrategyRun("cnn", "digits", "generic", "p50", 0)) == 7
    assert matched_weights(tmp_path, StrategyRun("cnn", "digits", "generic", "p50", 0, "2:4")) == 9
    with pytest.raises(MmpError, match=r"seed=0 pattern=4x1 has no completed run there; there are: .*pattern=2:4"):
        matched_weights(tmp_path, StrategyRun("cnn", "digits", "generic", "p50", 0, "4x1"))


# --- after masking ---


@pytest.mark.parametrize("text", ["2:4", "4x2"])
def test_reconstruction_keeps_the_pattern(text: str) -> None:
    torch.manual_seed(0)
    model, pattern = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 8)), Pattern.parse(text)
    weights = {one.name: model.get_parameter(one.name).detach().abs() for one in prunable_layers(model)}
    masks = make_masks(weights, dict.fromkeys(weights, 0.6), pattern)
    reports = reconstruct(model, masks, [torch.randn(64, 4, 4, 4)])
    assert {report.status for report in reports} == {"solved"}
    assert all(satisfies(model.get_parameter(name) != 0, pattern) for name in weights)


@pytest.mark.slow
def test_runs_with_patterns_state_them_and_are_skipped_when_complete(tmp_path: Path) -> None:
    line = ("prune.py", "-m", "pattern=none,2:4,4x4", "schedule=cubic", "schedule.end=1", "finetune.epochs=2")
    quick = [f"paths.results={tmp_path}", *(option for option in QUICK if not option.startswith("finetune"))]
    command(*line, *quick)
    results = {result["pattern"]: result for result in map(read, tmp_path.glob("sweeps/sweep/*/result.json"))}
    assert set(results) == {None, "2:4", "4x4"}
    for text, result in results.items():
        masks = load_masks(result["folder"] / "masks.safetensors")
        for one in result["layers"]:
            held = text is not None and satisfies(masks[one["name"]], Pattern.parse(text))
            assert one["pattern"] == (text if held else None)
    layers = results["2:4"]["layers"]
    under = [one["total"] for one in layers if one["pattern"]]
    assert 0 < len(under) < len(layers)
    stated = (
        f"pattern 2:4: in {len(under)} of {len(layers)} layers, {100 * sum(under) / results['2:4']['prunable']:.1f} %"
    )
    assert stated in (results["2:4"]["folder"] / "prune.log").read_text()
    table = (tmp_path / "sweeps" / "sweep" / "report" / "results.md").read_text()
    assert all(f"| {text} |" in table for text in ("2:4", "4x4"))
    assert command(*line, *quick).stdout.count("already completed, skipped") == 3


def read(path: Path) -> dict:
    return {**json.loads(path.read_text()), "folder": path.parent}


# --- torch's sparse kernels ---


def patterned_linear(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(128, 64).to(dtype)
    masks = make_masks({"weight": linear.weight.detach().abs()}, {"weight": 0.5}, TWO_FOUR)
    with torch.no_grad():
        linear.weight.mul_(masks["weight"])
    return linear


def test_torch_packs_a_patterned_weight_into_half_the_values_and_unpacks_it() -> None:
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass,
        sparse_semi_structured_to_dense_cutlass,
    )

    weight = patterned_linear(torch.float16).weight.detach()
    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
    assert packed.numel() == weight.numel() // 2
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed, meta), weight)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="2:4 kernels need a CUDA GPU of compute capability 8.0 or later",
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sparse_kernel_on_a_gpu_gives_the_same_outputs(dtype: torch.dtype) -> None:
    linear = patterned_linear(dtype).cuda()
    images = torch.randn(32, 128, dtype=dtype, device="cuda")
    with torch.inference_mode():
        expected = linear(images)
        linear.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(linear.weight), requires_grad=False)
        found = linear(images)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
