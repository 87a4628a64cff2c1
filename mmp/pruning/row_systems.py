"""Linear systems with one symmetric matrix and many rows, each row on its own columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_CACHED, _BLOCK = 2**20, 2**26  # numbers that are gathered for a batch of systems on a processor, and elsewhere


def with_ridge(a: Tensor, pull: Tensor) -> Tensor:
    """Return symmetric matrices (groups, columns, columns) with a number per group added to their diagonals."""
    a = a.clone()
    a.diagonal(dim1=1, dim2=2).add_(pull.unsqueeze(1))
    return a


@dataclass(frozen=True)
class Factors:
    """Cholesky factors of the systems of several rows, each on its own columns.

    Attributes:
        rows: Which rows of all groups together, (r,).
        columns: The columns of each, its own first, (r, width).
        own: Which of those are its own, (r, width); the others are cut off by ones on the diagonal.
        lower: The factors, (r, width, width); NaN where a system is not positive definite.
    """

    rows: Tensor
    columns: Tensor
    own: Tensor
    lower: Tensor

    def solve(self, right: Tensor) -> Tensor:
        """Return the solutions (r, width) for the right sides of all rows, (..., columns); zero where not their own."""
        chosen = (right.flatten(0, -2)[self.rows].gather(1, self.columns) * self.own).unsqueeze(2)
        half = torch.linalg.solve_triangular(self.lower, chosen, upper=False)
        return torch.linalg.solve_triangular(self.lower.transpose(1, 2), half, upper=True).squeeze(2) * self.own

    def scatter(self, values: Tensor, target: Tensor) -> None:
        """Write values (r, width) to where they belong in a tensor of all rows, (..., columns), in place."""
        flat = target.view(-1, target.shape[-1])
        flat[self.rows] = flat[self.rows].scatter_(1, self.columns, values)


def factorise(a: Tensor, kept: Tensor) -> Iterator[Factors]:
    """Yield the factors of every row's system, rows with about as many columns together; rows without any are left out.

    Args:
        a: Symmetric matrices (groups, columns, columns), of which the systems of a group's rows are parts.
        kept: Which columns each row has, (groups, rows, columns).
    """
    (_, outputs, size), kept = kept.shape, kept.flatten(0, 1)
    counts = kept.sum(1)
    order = counts.argsort(stable=True)
    first, most = int((counts == 0).sum()), _CACHED if a.device.type == "cpu" else _BLOCK
    while first < len(order):
        narrow = int(counts[order[first]])
        block = order[first:][: max(1, most // math.ceil(1.1 * narrow) // size)]
        rows = block[counts[block] <= math.ceil(1.1 * narrow)]
        first += len(rows)
        width = int(counts[rows].max())
        columns = (~kept[rows]).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        own = torch.arange(width, device=a.device) < counts[rows].unsqueeze(1)
        lines = (torch.div(rows, outputs, rounding_mode="floor").unsqueeze(1) * size + columns).flatten()
        systems = a.reshape(-1, size).index_select(0, lines).view(*columns.shape, size)
        systems = systems.gather(2, columns.unsqueeze(1).expand(-1, width, -1))
        if not own.all():
            systems *= own.unsqueeze(2) & own.unsqueeze(1)
            systems.diagonal(dim1=1, dim2=2).add_((~own).to(a.dtype))
        yield Factors(rows, columns, own, _cholesky(systems))


def _cholesky(systems: Tensor) -> Tensor:
    """Return lower factors (..., n, n); NaN where a system is not positive definite."""
    lower, failed = torch.linalg.cholesky_ex(systems)
    if failed.any():
        lower[failed != 0] = torch.nan
    return lower
