from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mmp.errors import MmpError
from mmp.pruning.calibration_statistics import STATISTICS, collect
from mmp.pruning.criteria import CRITERIA, BlockFisher, Criterion, Mag, QuantizedTaylor, criterion, global_masks
from mmp.pruning.layers.layer import Layer, count_weights
from mmp.pruning.layers.prunable import prunable_layers
from mmp.pruning.masks import make_masks
from mmp.pruning.signals import Magnitude, Product, score

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def all_scores(conv_net: nn.Module, image_batches: Batches) -> dict[str, dict[str, Tensor]]:
    """Scores of the small network by every criterion, and by the two signals that are similar to criteria."""
    parameters = {name: p for name, p in conv_net.named_parameters() if p.dim() > 1}
    statistics = collect(conv_net, parameters, image_batches, F.cross_entropy, STATISTICS)
    scorers = (*(kind() for kind in CRITERIA.values()), Magnitude(), Product())
    return {scorer.name: score(scorer, parameters, statistics) for scorer in scorers}


# --- scores ---


def test_scores_by_hand() -> None:
    # The quadratic of test_signals: loss (w x - y)^2 / 2, g = (1, -1/3), H g = (5/9, 1/9).
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -1.0]]))
    parameters = dict(model.named_parameters())
    batches = [
        (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0]])),
        (torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0]])),
    ]
    statistics = collect(model, parameters, batches, lambda o, y: (o - y).square().mean() / 2, STATISTICS)
    found = {name: score(kind(), parameters, statistics)["weight"][0].tolist() for name, kind in CRITERIA.items()}
    assert found["mag"] == found["uniform"] == found["erk"] == [2.0, 1.0]
    assert found["snip"] == pytest.approx([2.0, 1 / 3])  # product has (2, 1): its batches do not cancel
    assert found["grasp"] == pytest.approx([10 / 9, -1 / 9])
    # Gradients of the two batches, of 2 samples and 1: (1, -1) and (1, 1). Squares do not cancel: E[g_b^2] = (1, 1).
    assert found["taylor"] == pytest.approx([4.0, 1.0])
    # Gradients of the three images: (2, 0), (0, -2), (1, 1). Their squares have the means (5/3, 5/3).
    assert found["fisher"] == pytest.approx([4 * 5 / 3, 5 / 3])
    assert found["block_fisher"] == pytest.approx([2.5 * 5 / 3] * 2)
    # 1 / (1 + 4) for the smaller, 4 / 4 for the larger.
    assert found["lamp"] == pytest.approx([1.0, 0.2])
    assert len(set(found["random"])) == 2
    assert all(0 <= value < 1 for value in found["random"])


def test_lamp_divides_each_square_by_the_sum_of_larger_ones() -> None:
    found = criterion("lamp").score(torch.tensor([[1.0, -3.0], [2.0, 0.0]]), {})
    assert found.flatten().tolist() == pytest.approx([1 / 14, 1.0, 4 / 13, 0.0])
    assert criterion("lamp").score(torch.zeros(3), {}).tolist() == [0.0, 0.0, 0.0]


def test_weights_of_a_block_share_a_score_and_edge_blocks_are_smaller() -> None:
    squared = torch.arange(15.0).view(5, 3, 1, 1)
    found = BlockFisher(size=2).score(torch.ones(5, 3, 1, 1), {"squared_gradient": squared}).view(5, 3)
    assert found[:2, :2].unique().tolist() == [2.0]  # 0, 1, 3, 4
    assert found[:2, 2].unique().tolist() == [3.5]  # 2, 5
    assert found[4].tolist() == [12.5, 12.5, 14.0]


def test_weights_that_round_to_zero_score_zero_at_any_gradient() -> None:
    weight = torch.tensor([[1.0, 0.1, 0.2], [0.01, 0.001, 0.01]])  # steps of 1/3 and 0.01/3 with three bits
    gradient = torch.tensor([[-1.0, 9.0, 2.0], [1.0, 9.0, 3.0]])
    found = QuantizedTaylor(bits=3).score(weight, {"gradient": gradient})
    assert found.flatten().tolist() == pytest.approx([1.0, 0.0, 2 / 3, 0.01, 0.0, 0.03])


def test_random_scores_depend_on_the_weights_only() -> None:
    first, second = torch.randn(4, 4), torch.randn(4, 4)
    scores = [criterion("random").score(weight, {}) for weight in (first, first.clone(), second)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_scores_use_the_statistic_that_they_name() -> None:
    weight = torch.tensor([1.0, -2.0, 3.0])
    gradient = {"gradient": torch.tensor([-1.0, 0.5, 0.0])}
    assert criterion("snip").score(weight, gradient).tolist() == [1.0, 1.0, 0.0]
    hessian_gradient = {"hessian_gradient": torch.tensor([-1.0, 0.5, 2.0])}
    assert criterion("grasp").score(weight, hessian_gradient).tolist() == [-1.0, -1.0, 6.0]


def test_criteria_prune_the_same_number_of_different_weights(
    conv_net: nn.Module, all_scores: dict[str, dict[str, Tensor]]
) -> None:
    layers = prunable_layers(conv_net)
    half = count_weights(layers) // 2
    masks = {}
    for name, kind in CRITERIA.items():
        sparsities = kind().allocate(layers, all_scores[name], half)
        masks[name] = make_masks(all_scores[name], sparsities)
        assert sum(masks[name].pruned.values()) == half, name
    for one, other in combinations(masks.values(), 2):
        assert one.digest() != other.digest()


def test_snip_is_neither_magnitude_nor_product(all_scores: dict[str, dict[str, Tensor]]) -> None:
    half = dict.fromkeys(all_scores["snip"], 0.5)
    layerwise = {name: make_masks(scores, half).digest() for name, scores in all_scores.items()}
    by_size = {"mag", "uniform", "erk", "lamp", "magnitude"}  # one order within a layer
    assert len({layerwise[name] for name in by_size}) == 1
    assert len(set(layerwise.values())) == len(layerwise) - len(by_size) + 1


def test_unknown_criterion_names_the_nearest() -> None:
    with pytest.raises(MmpError, match=r"unknown criterion 'gasp'; did you mean 'grasp'"):
        criterion("gasp")


# --- the global ranking ---


def test_the_lowest_scores_of_all_layers_are_pruned() -> None:
    scores = {"a": torch.tensor([[0.1, 5.0], [0.4, 6.0]]), "b": torch.tensor([0.2, 0.3, -1.0, 7.0])}
    masks = global_masks(scores, 4)
    assert masks["a"].tolist() == [[False, True], [True, True]]
    assert masks["b"].tolist() == [False, False, False, True]


def test_equal_scores_are_pruned_in_the_order_of_the_layers() -> None:
    masks = global_masks({"b": torch.ones(2), "a": torch.ones(3)}, 3)
    assert list(masks) == ["b", "a"]
    assert masks["b"].tolist() == [False, False]
    assert masks["a"].tolist() == [False, True, True]


@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(0, 64),
)
def test_the_exact_number_is_pruned_and_no_kept_score_is_lower(layers: list[list[int]], sixty_fourths: int) -> None:
    scores = {str(i): torch.tensor(values).float() for i, values in enumerate(layers)}
    total = sum(map(len, layers))
    masks = global_masks(scores, sixty_fourths * total // 64)
    assert sum(masks.pruned.values()) == sixty_fourths * total // 64
    flat = [(value, bool(kept)) for name in scores for value, kept in zip(scores[name], masks[name], strict=True)]
    gone = [value for value, kept in flat if not kept]
    kept = [value for value, kept in flat if kept]
    assert not gone or not kept or max(gone) <= min(kept)


# --- allocations ---


def layer(name: str, *shape: int) -> Layer:
    return Layer(name, name, "conv", None, 0.5, shape)


def allocated(kind: Criterion, layers: list[Layer], pruned: int) -> dict[str, int]:
    """Return the number of weights that each layer loses; their sum must be right."""
    scores = {one.name: torch.rand(one.shape) for one in layers}
    masks = make_masks(scores, kind.allocate(layers, scores, pruned))
    assert sum(masks.pruned.values()) == pruned
    return masks.pruned


def test_uniform_prunes_the_same_share_of_every_layer() -> None:
    layers = [layer("a", 10, 10), layer("b", 20, 5, 3, 3), layer("c", 7, 3)]
    assert allocated(criterion("uniform"), layers, 511) == {"a": 50, "b": 450, "c": 11}  # half of each, and the odd one


def test_erk_densities_by_hand() -> None:
    # Sums of dimensions: 4 + 4 = 8, 16 + 16 + 3 + 3 = 38. Kept weights in that ratio: 46 kept are 8 and 38.
    layers = [layer("a", 4, 4), layer("b", 16, 16, 3, 3)]
    assert allocated(criterion("erk"), layers, 16 + 2304 - 46) == {"a": 8, "b": 2304 - 38}
    # With 76 kept the first layer has 8 / 46 of them: 13.2; with 230 it would need 40, so it stays dense at 16.
    assert allocated(criterion("erk"), layers, 16 + 2304 - 230) == {"a": 0, "b": 2304 - 214}
    assert allocated(criterion("erk"), layers, 0) == {"a": 0, "b": 0}


def test_a_minimum_density_keeps_the_highest_scores_of_every_layer() -> None:
    scores = {"low": torch.tensor([1.0, 3.0, 2.0, 0.5]), "high": torch.arange(10.0, 18.0)}
    assert global_masks(scores, 4).pruned == {"low": 4, "high": 0}
    masks = global_masks(scores, 4, min_density=0.25)
    assert masks["low"].tolist() == [False, True, False, False]
    assert masks.pruned == {"low": 3, "high": 1}
    with pytest.raises(MmpError, match=r"min_density=0\.25 leaves 9 of 12 weights to prune, but the budget takes 10"):
        global_masks(scores, 10, min_density=0.25)


@pytest.mark.parametrize("name", ["uniform", "erk"])
def test_criteria_that_set_each_sparsity_refuse_a_minimum_density(name: str) -> None:
    with pytest.raises(MmpError, match=f"criterion={name} sets each layer's sparsity itself"):
        CRITERIA[name](min_density=0.1)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(MmpError, match=r"criterion\.min_density=1\.0"):
        Mag(min_density=1.0)
    with pytest.raises(MmpError, match=r"criterion\.bits=1"):
        QuantizedTaylor(bits=1)
    with pytest.raises(MmpError, match=r"criterion\.size=0"):
        BlockFisher(size=0)
