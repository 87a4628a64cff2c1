"""Optimal Brain Surgeon as a signal: weights in the order in which a layer's output misses them least.

Removing weight q of a row and moving the row's other weights to where they make up for it best adds

    w_q^2 / [H^-1]_qq

to the row's squared output error, where H is the covariance of the layer's inputs on the columns that the row still has
(Hassibi and Stork 1992; per layer and row: OBC, Frantar et al. 2022, arXiv 2208.11580). Weights go in rounds: all are
scored, the layer's cheapest go, the rest of every row is solved for again. A weight's score is its place in that order,
so one order serves every sparsity.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmp.pruning.row_systems import factorise, with_ridge

_RIDGE = 0.01  # as a share of the mean squared input, as in reconstruction
_KEPT = 0.7  # share of a layer's weights that is left after a round
_LAST = 0.02  # of a layer's weights, below which they are no longer scored anew
_DAMPING = 0.1  # of the mean importance, added to each: a sure class has no gradient, and is needed all the same
_WIDEST = 2048  # columns of a row that are taken together; beyond, H is cut into blocks


@dataclass(frozen=True)
class Obs:
    """Place in the order of removal by output error, from unlabelled images."""

    name: str = "obs"
    needs: frozenset[str] = frozenset({"input_covariance"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return places in [0, 1), the first to go lowest."""
        return removal_order(weight, statistics["input_covariance"])


@dataclass(frozen=True)
class ObsFisher:
    """The same, with a row's error weighted by the mean squared gradient of the loss by its output."""

    name: str = "obs_fisher"
    needs: frozenset[str] = frozenset({"input_covariance", "squared_output_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return places in [0, 1), the first to go lowest."""
        return removal_order(weight, statistics["input_covariance"], statistics["squared_output_gradient"])


def removal_order(weight: Tensor, covariance: Tensor, importance: Tensor | None = None) -> Tensor:
    """Return the place of every weight in the order of removal, as a share of the layer, in the weight's shape.

    Args:
        weight: (outputs, columns per group, ...).
        covariance: Of the layer's inputs, (groups, columns, columns).
        importance: Of every output, (outputs,); all the same if None.
    """
    groups, columns = covariance.shape[:2]
    dense = weight.detach().float().reshape(groups, -1, columns)
    rows = torch.ones_like(dense[..., :1])
    if importance is not None:
        rows = (importance + _DAMPING * importance.mean()).float().view(groups, -1, 1)
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
    count = math.ceil(columns / _WIDEST)
    edges = [columns * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _costs(covariance: Tensor, dense: Tensor, kept: Tensor) -> Tensor:
    """Return what removing each kept weight would cost its row, (groups, outputs, columns)."""
    mean = covariance.diagonal(dim1=1, dim2=2).mean(1)
    a = with_ridge(covariance, torch.where(mean > 0, _RIDGE * mean, 1.0)).float()
    costs = torch.zeros_like(dense)
    if kept.all():  # all rows have the same system, and the dense weights solve it
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(a)).diagonal(dim1=1, dim2=2)
        return dense.square() / inverse.unsqueeze(1)
    right = dense @ a
    for factors in factorise(a, kept):
        inverse = torch.cholesky_inverse(factors.lower).diagonal(dim1=1, dim2=2)
        factors.scatter(factors.solve(right).square() / inverse * factors.own, costs)
    return costs
