from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mmp.criteria import CRITERIA, criterion, global_masks, global_sparsities
from mmp.errors import MmpError
from mmp.masks import make_masks
from mmp.signals import Magnitude, Product, score
from mmp.statistics import STATISTICS, collect

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def all_scores(conv_net: nn.Module, image_batches: Batches) -> dict[str, dict[str, Tensor]]:
    """Scores of the small network by every criterion, and by the two signals that come close to one."""
    parameters = {name: p for name, p in conv_net.named_parameters() if p.dim() > 1}
    statistics = collect(conv_net, parameters, image_batches, F.cross_entropy, STATISTICS)
    scorers = (*CRITERIA.values(), Magnitude(), Product())
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
    found = {c.name: score(c, parameters, statistics)["weight"][0].tolist() for c in CRITERIA.values()}
    assert found["mag"] == [2.0, 1.0]
    assert found["snip"] == pytest.approx([2.0, 1 / 3])  # product has (2, 1): its batches do not cancel
    assert found["grasp"] == pytest.approx([10 / 9, -1 / 9])


def test_scores_use_the_statistic_that_they_name() -> None:
    weight = torch.tensor([1.0, -2.0, 3.0])
    gradient = {"gradient": torch.tensor([-1.0, 0.5, 0.0])}
    assert criterion("snip").score(weight, gradient).tolist() == [1.0, 1.0, 0.0]
    hessian_gradient = {"hessian_gradient": torch.tensor([-1.0, 0.5, 2.0])}
    assert criterion("grasp").score(weight, hessian_gradient).tolist() == [-1.0, -1.0, 6.0]


def test_criteria_rank_differently(all_scores: dict[str, dict[str, Tensor]]) -> None:
    masks = {name: global_masks(all_scores[name], 0.5) for name in CRITERIA}
    assert list(masks) == ["mag", "snip", "grasp"]
    for one, other in combinations(masks.values(), 2):
        assert one.digest() != other.digest()


def test_snip_is_neither_magnitude_nor_product(all_scores: dict[str, dict[str, Tensor]]) -> None:
    half = dict.fromkeys(all_scores["snip"], 0.5)
    layerwise = {name: make_masks(scores, half).digest() for name, scores in all_scores.items()}
    assert layerwise["mag"] == layerwise["magnitude"]
    assert len(set(layerwise.values())) == len(layerwise) - 1


def test_unknown_criterion_names_the_nearest() -> None:
    with pytest.raises(MmpError, match=r"unknown criterion 'gasp'; did you mean 'grasp'"):
        criterion("gasp")


# --- the global ranking ---


def test_lowest_scores_of_all_layers_go() -> None:
    scores = {"a": torch.tensor([[0.1, 5.0], [0.4, 6.0]]), "b": torch.tensor([0.2, 0.3, -1.0, 7.0])}
    masks = global_masks(scores, 0.5)
    assert masks["a"].tolist() == [[False, True], [True, True]]
    assert masks["b"].tolist() == [False, False, False, True]
    assert global_sparsities(scores, 0.5) == {"a": 0.25, "b": 0.75}


def test_equal_scores_go_by_the_order_of_the_layers() -> None:
    masks = global_masks({"b": torch.ones(2), "a": torch.ones(3)}, 0.6)
    assert list(masks) == ["b", "a"]
    assert masks["b"].tolist() == [False, False]
    assert masks["a"].tolist() == [False, True, True]


@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(0, 64),
)
def test_exactly_the_floor_goes_and_nothing_kept_is_lower(layers: list[list[int]], sixty_fourths: int) -> None:
    scores = {str(i): torch.tensor(values).float() for i, values in enumerate(layers)}
    masks = global_masks(scores, sixty_fourths / 64)
    total = sum(map(len, layers))
    assert sum(masks.pruned.values()) == sixty_fourths * total // 64
    flat = [(value, bool(kept)) for name in scores for value, kept in zip(scores[name], masks[name], strict=True)]
    gone = [value for value, kept in flat if not kept]
    kept = [value for value, kept in flat if kept]
    assert not gone or not kept or max(gone) <= min(kept)


def test_target_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(MmpError, match=r"sparsity 1\.5 is outside"):
        global_masks({"a": torch.ones(2)}, 1.5)
