"""Optimal Brain Surgeon as a signal: the order in which weights can be removed with the least output error.

If weight q of a row is removed and the row's other weights are re-solved, its squared output error increases by

    w_q^2 / [H^-1]_qq,

where H is the covariance of the layer's inputs on the columns that the row still has (Hassibi and Stork 1992; per layer
and row: OBC, Frantar et al. 2022, arXiv 2208.11580). Weights are removed in rounds: score all remaining weights, remove
the cheapest of the layer, re-solve every row. A weight's score is its place in the order of removal, so the same scores
serve every sparsity.

Every row has its own columns left, and so its own H to invert, in a time that grows with the cube of their number. In
layers of many columns, until about a sixth of them are left, all rows are re-solved together by steps of conjugate
gradients with the H of all columns. Then [H^-1]_qq is estimated. It lies between 1 / H_qq, its value for a row with
column q alone, and its value for all columns. The estimate is the geometric mean of these two, weighted by the share of
the row's columns that is left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmp.pruning.channels.group import ChannelGroup
from mmp.pruning.channels.order import removal_order as sets_order
from mmp.pruning.row_systems import damped, factorise, regularised, solve_together

_KEPT = 0.7  # share of the remaining weights that is left after a round
_LAST = 0.02  # share of a layer's weights below which the rest is removed in one round
_WIDEST = 2048  # columns of a row that are solved together; for more, H is divided into diagonal blocks
_EXACT = 640  # columns up to which every row's own H is inverted in every round
_STEPS = 10  # of conjugate gradients


@dataclass(frozen=True)
class Obs:
    """The order of removal by output error, from unlabelled images; see the module."""

    name: str = "obs"
    needs: frozenset[str] = frozenset({"input_covariance"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return places in the order of removal, in [0, 1); 0 is removed first."""
        return removal_order(weight, statistics["input_covariance"])

    def score_sets(
        self, group: ChannelGroup, weights: Mapping[str, Tensor], statistics: Mapping[str, Mapping[str, Tensor]]
    ) -> Tensor:
        """Return the places of a group's sets of channels in the order of removal, in [0, 1)."""
        return sets_order(group, weights, statistics)


@dataclass(frozen=True)
class ObsFisher:
    """The order of removal by output error, each row's error times the mean squared gradient of its output."""

    name: str = "obs_fisher"
    needs: frozenset[str] = frozenset({"input_covariance", "squared_output_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return places in the order of removal, in [0, 1); 0 is removed first."""
        return removal_order(weight, statistics["input_covariance"], statistics["squared_output_gradient"])

    def score_sets(
        self, group: ChannelGroup, weights: Mapping[str, Tensor], statistics: Mapping[str, Mapping[str, Tensor]]
    ) -> Tensor:
        """Return the places of a group's sets of channels in the order of removal, in [0, 1)."""
        return sets_order(group, weights, statistics, fisher=True)


def removal_order(weight: Tensor, covariance: Tensor, importance: Tensor | None = None) -> Tensor:
    """Return the place of every weight in the order of removal, divided by the number of weights.

    Args:
        weight: The weight, (outputs, inputs per group, kernel...).
        covariance: Covariance of the layer's inputs, (groups, columns, columns).
        importance: Factor of every row's error, (outputs,); 1 if None.

    Returns:
        A float32 tensor of the weight's shape, in [0, 1).
    """
    groups, columns = covariance.shape[:2]
    dense = weight.detach().float().reshape(groups, -1, columns)
    rows = torch.ones_like(dense[..., :1])
    if importance is not None:
        rows = damped(importance).float().view(groups, -1, 1)
    parts = _parts(columns)
    kept, order = torch.ones_like(dense, dtype=torch.bool), torch.zeros_like(dense, dtype=torch.float64).flatten()
    gone, total = 0, dense.numel()
    while gone < total:
        costs = torch.cat([_costs(covariance[:, p, p], dense[..., p], kept[..., p]) for p in parts], dim=2)
        left = kept.flatten().nonzero().flatten()
        cheapest = (costs * rows).flatten()[left].argsort(stable=True)
        last = len(left) <= max(1, _LAST * total)
        going = left[cheapest[: len(left) if last else math.ceil((1 - _KEPT) * len(left))]]
        order[going] = torch.arange(gone, gone + len(going), device=weight.device).double() / total
        kept.view(-1)[going] = False
        gone += len(going)
    return order.view(weight.shape).float()


def _parts(columns: int) -> list[slice]:
    """Return even parts of at most `_WIDEST` columns."""
    count = math.ceil(columns / _WIDEST)
    edges = [columns * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _costs(covariance: Tensor, dense: Tensor, kept: Tensor) -> Tensor:
    """Return the increase of a row's error by the removal of each kept weight, (groups, outputs, columns).

    Args:
        covariance: Covariance of the inputs, (groups, columns, columns).
        dense: Dense weights, (groups, outputs, columns).
        kept: Bool tensor of the same shape, True for the weights that are left.
    """
    a = regularised(covariance).float()
    columns, left = a.shape[2], kept.sum(2, keepdim=True, dtype=torch.float64)
    # A step takes 2 columns^2 operations for a row. The inverse takes left^3, and these take about four times as long.
    together = columns > _EXACT and 4 * left.pow(3).mean() > 2 * _STEPS * columns**2
    if together or kept.all():  # if all columns are left, the dense weights are the solution
        solved = dense if kept.all() else solve_together(a, dense, kept, _STEPS)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(a)).diagonal(dim1=1, dim2=2).unsqueeze(1)
        alone, share = 1 / a.diagonal(dim1=1, dim2=2).unsqueeze(1), (left / columns).float()
        return solved.square() / (inverse**share * alone ** (1 - share))
    costs, right = torch.zeros_like(dense), dense @ a
    for factors in factorise(a, kept):
        inverse = torch.cholesky_inverse(factors.lower).diagonal(dim1=1, dim2=2)
        factors.scatter(factors.solve(right).square() / inverse * factors.own, costs)
    return costs
