"""Linear systems that share one symmetric matrix: one system per row, each on its own columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGE = 0.01  # as a share of the inputs' mean variance, as in reconstruction
_DAMPING = 0.1  # share of the mean importance that is added to each: an output without gradient also matters
_CACHED, _BLOCK = 2**20, 2**26  # numbers in a batch of systems, on a CPU (so that they fit its cache) and elsewhere


def with_ridge(a: Tensor, pull: Tensor) -> Tensor:
    """Return symmetric matrices with a number per group added to their diagonals.

    Args:
        a: The matrices, (groups, columns, columns).
        pull: The numbers, (groups,).
    """
    a = a.clone()
    a.diagonal(dim1=1, dim2=2).add_(pull.unsqueeze(1))
    return a


def regularised(covariance: Tensor) -> Tensor:
    """Return covariances (groups, columns, columns) with a ridge, so that they can be inverted."""
    mean = covariance.diagonal(dim1=1, dim2=2).mean(1)
    return with_ridge(covariance, torch.where(mean > 0, _RIDGE * mean, 1.0))


def damped(importance: Tensor) -> Tensor:
    """Return the importance of each output, (outputs,), with a share of their mean added."""
    return importance + _DAMPING * importance.mean()


@dataclass(frozen=True)
class Factors:
    """Cholesky factors of the systems of r rows, each on its own columns, padded to the same width.

    Attributes:
        rows: Numbers of the rows among the rows of all groups, (r,).
        columns: Numbers of each row's columns, its own first and then others as padding, (r, width).
        own: True for a row's own columns, (r, width). In the factors, padding is a row of the identity.
        lower: Lower triangular factors, (r, width, width); NaN where a system is not positive definite.
    """

    rows: Tensor
    columns: Tensor
    own: Tensor
    lower: Tensor

    def solve(self, right: Tensor) -> Tensor:
        """Return the solutions of the systems, (r, width), zero in the padding.

        Args:
            right: Right sides of all rows, (groups, rows, columns).
        """
        chosen = (right.flatten(0, -2)[self.rows].gather(1, self.columns) * self.own).unsqueeze(2)
        half = torch.linalg.solve_triangular(self.lower, chosen, upper=False)
        return torch.linalg.solve_triangular(self.lower.transpose(1, 2), half, upper=True).squeeze(2) * self.own

    def scatter(self, values: Tensor, target: Tensor) -> None:
        """Write values to their rows and columns of a tensor, in place.

        Args:
            values: Values of the systems, (r, width).
            target: The tensor of all rows, (groups, rows, columns).
        """
        flat = target.view(-1, target.shape[-1])
        flat[self.rows] = flat[self.rows].scatter_(1, self.columns, values)


def factorise(a: Tensor, kept: Tensor) -> Iterator[Factors]:
    """Yield the factors of every row's system, for batches of rows with similar numbers of columns.

    Rows without columns are left out.

    Args:
        a: Symmetric matrices, (groups, columns, columns). The system of a row consists of the rows and columns of its
            group's matrix that the row keeps.
        kept: Bool tensor (groups, rows, columns), True for the columns of each row.
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
        yield Factors(rows, columns, own, cholesky_or_nan(systems))


def solve_together(a: Tensor, dense: Tensor, kept: Tensor, steps: int) -> Tensor:
    """Return what all rows keep of dense weights, re-solved for the dense outputs by steps of conjugate gradients.

    The steps begin at the dense weights of the kept columns. Their preconditioner is the diagonal.

    Args:
        a: Symmetric positive definite matrices, (groups, columns, columns).
        dense: Dense weights, (groups, rows, columns).
        kept: Bool tensor (groups, rows, columns), True for the columns of each row.
        steps: Number of steps. More bring each row closer to the solution of its own system.

    Returns:
        The weights, (groups, rows, columns), zero in the columns that are not kept.
    """
    mask, scale, tiny = kept.to(a.dtype), a.diagonal(dim1=1, dim2=2).unsqueeze(1), torch.finfo(a.dtype).tiny
    solution = dense * mask
    residual = ((dense - solution) @ a) * mask
    direction = scaled = residual / scale
    norm = (residual * scaled).sum(2, keepdim=True)
    for _ in range(steps):
        moved = (direction @ a) * mask
        length = norm / (direction * moved).sum(2, keepdim=True).clamp_min(tiny)
        solution = solution + length * direction
        residual = residual - length * moved
        scaled = residual / scale
        last, norm = norm, (residual * scaled).sum(2, keepdim=True)
        direction = scaled + norm / last.clamp_min(tiny) * direction
    return solution


def cholesky_or_nan(systems: Tensor) -> Tensor:
    """Return the lower Cholesky factors of matrices (..., n, n); NaN where one is not positive definite."""
    lower, failed = torch.linalg.cholesky_ex(systems)
    if failed.any():
        lower[failed != 0] = torch.nan
    return lower
