"""Optimal Brain Surgeon: against removals tried one by one, and against the errors after re-solving."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mmp.pruning.optimal_brain_surgeon
from mmp.pruning.masks import Masks, make_masks
from mmp.pruning.optimal_brain_surgeon import Obs, ObsFisher, removal_order
from mmp.pruning.row_systems import solve_together, with_ridge


def inputs_of(columns: int, rows: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(rows, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return mixed.double()


def covariance_of(x: Tensor) -> Tensor:
    return torch.cov(x.T, correction=0)[None]


def cost_of(a: Tensor, dense: Tensor, kept: Tensor) -> float:
    """Return the error of a row that keeps some columns and re-solves their weights."""
    w = torch.zeros_like(dense)
    if kept.any():
        w[kept] = torch.linalg.solve(a[kept][:, kept], (a @ dense)[kept])
    return float((w - dense) @ a @ (w - dense))


def test_each_removal_adds_the_least_possible_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmp.pruning.optimal_brain_surgeon, "_KEPT", 0.999)  # one weight a round
    covariance, weight = covariance_of(inputs_of(6)), torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    a = with_ridge(covariance, 0.01 * covariance.diagonal(dim1=1, dim2=2).mean(1))[0]
    order = removal_order(weight, covariance)
    assert sorted(order.flatten().tolist()) == pytest.approx([i / 18 for i in range(18)])
    kept = torch.ones(3, 6, dtype=torch.bool)
    for _ in range(17):
        spent = [cost_of(a, weight[row].double(), kept[row]) for row in range(3)]
        extra = {}
        for row, column in kept.nonzero().tolist():
            without = kept[row].clone()
            without[column] = False
            extra[row, column] = cost_of(a, weight[row].double(), without) - spent[row]
        expected = min(extra, key=lambda place: extra[place])
        assert min(kept.nonzero().tolist(), key=lambda place: float(order[tuple(place)])) == list(expected)
        kept[expected] = False


def test_rows_of_higher_importance_are_removed_later() -> None:
    weight, covariance = torch.ones(2, 4), torch.eye(4, dtype=torch.float64)[None]
    statistics = {"input_covariance": covariance, "squared_output_gradient": torch.tensor([9.0, 1.0])}
    assert ObsFisher().score(weight, statistics)[0].min() > ObsFisher().score(weight, statistics)[1].max()
    assert Obs().score(weight, statistics)[0].min() < Obs().score(weight, statistics)[1].max()


def test_a_row_without_gradient_keeps_weights() -> None:
    weight, covariance = torch.randn(4, 50), covariance_of(inputs_of(50))
    statistics = {"input_covariance": covariance, "squared_output_gradient": torch.tensor([1.0, 1.0, 1.0, 0.0])}
    masks = make_masks({"weight": ObsFisher().score(weight, statistics)}, {"weight": 0.5})
    assert masks["weight"][3].any()


def test_independent_inputs_give_the_order_of_magnitude() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    order = removal_order(weight, torch.eye(27, dtype=torch.float64)[None])
    assert torch.equal(order.flatten().argsort(), weight.abs().flatten().argsort())


@pytest.mark.parametrize(("widest", "most"), [(2048, 0.8), (18, 1.0)])
def test_in_groups_and_blocks_the_kept_weights_leave_less_error_than_the_largest(
    widest: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmp.pruning.optimal_brain_surgeon, "_WIDEST", widest)
    layer = nn.Conv2d(8, 12, 3, groups=2)
    covariance = torch.cat([covariance_of(inputs_of(36)), covariance_of(inputs_of(36) * 2)])
    order = removal_order(layer.weight, covariance)
    assert sorted(order.flatten().tolist()) == pytest.approx([i / order.numel() for i in range(order.numel())])

    def error(masks: Masks) -> float:
        mask = masks["weight"].reshape(2, 6, 36)
        dense = layer.weight.detach().double().reshape(2, 6, 36)
        return sum(cost_of(covariance[g], dense[g, row], mask[g, row]) for g in range(2) for row in range(6))

    by_obs = make_masks({"weight": order}, {"weight": 0.6})
    by_magnitude = make_masks({"weight": layer.weight.detach().abs()}, {"weight": 0.6})
    assert error(by_obs) < most * error(by_magnitude)


@pytest.mark.parametrize(("rows", "share"), [(300, 0.5), (300, 0.8), (30, 0.7)])  # more and fewer inputs than columns
@pytest.mark.parametrize("spread", [0.0, 1.5])  # of the rows' sizes, in powers of ten
def test_rows_solved_together_keep_weights_that_leave_as_little_error(
    rows: int, share: float, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    covariance = torch.cat([covariance_of(inputs_of(48, rows)), covariance_of(inputs_of(48, rows) * 2)])
    weight = torch.randn(2 * 10, 48, generator=torch.Generator().manual_seed(5))
    weight *= torch.logspace(0, spread, 20).unsqueeze(1)
    system = with_ridge(covariance, 0.01 * covariance.diagonal(dim1=1, dim2=2).mean(1))
    exact = removal_order(weight, covariance)
    monkeypatch.setattr(mmp.pruning.optimal_brain_surgeon, "_EXACT", 20)
    together = removal_order(weight, covariance)
    assert not together.equal(exact)
    monkeypatch.setattr(mmp.pruning.optimal_brain_surgeon, "solve_together", lambda a, dense, kept, steps: dense * kept)
    unsolved = removal_order(weight, covariance)

    def error(score: Tensor) -> float:
        mask = make_masks({"weight": score}, {"weight": share})["weight"].view(2, 10, 48)
        dense = weight.double().view(2, 10, 48)
        return sum(cost_of(system[g], dense[g, row], mask[g, row]) for g in range(2) for row in range(10))

    assert error(together) < 1.1 * error(exact)
    assert error(together) < min(error(unsolved), error(weight.abs()))


def test_many_steps_together_reach_the_solution_of_every_row() -> None:
    covariance = with_ridge(covariance_of(inputs_of(12)), torch.ones(1, dtype=torch.float64))
    dense = torch.randn(1, 5, 12, dtype=torch.float64)
    kept = torch.rand(1, 5, 12) < 0.5
    kept[0, 0] = False
    solved = solve_together(covariance, dense, kept, steps=30)
    assert not solved[~kept].any()
    for row in range(1, 5):
        own, a = kept[0, row], covariance[0]
        expected = torch.linalg.solve(a[own][:, own], (a @ dense[0, row])[own])
        torch.testing.assert_close(solved[0, row][own], expected)


@pytest.mark.parametrize("exact", [6, 0])
def test_weights_of_dead_inputs_are_removed_first_and_the_order_is_finite(
    exact: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmp.pruning.optimal_brain_surgeon, "_EXACT", exact)
    monkeypatch.setattr(mmp.pruning.optimal_brain_surgeon, "_STEPS", 1)  # so that all rows of six columns are wide
    x = inputs_of(6)
    x[:, 2] = 0
    weight = torch.full((4, 6), 0.5)
    order = removal_order(weight, covariance_of(x))
    assert order.isfinite().all()
    assert order[:, 2].max() < 4 / 24
    assert removal_order(weight, torch.zeros(1, 6, 6, dtype=torch.float64)).isfinite().all()
