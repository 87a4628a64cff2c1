"""Least squares under a mask: the rows of a weight solved from the moments of its inputs and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmp.moments import Moments

_LEAST_SPREAD = 0.01
_LEAST_RIDGE = 1e-5  # times the mean squared input, with which float32 tells the directions of inputs apart
_CACHED, _BLOCK = 2**20, 2**26  # numbers that are gathered for a batch of systems on a processor, and elsewhere
_CONJUGATE_STEPS = 200
_TOLERANCE = 1e-5
_DIRECTIONS = 32  # in which inputs vary most


def solve_rows(moments: Moments, mask: Tensor, dense: Tensor, ridge: float, centred: bool) -> Tensor | None:
    """Return the weight that minimises a layer's error under its mask.

    Args:
        moments: The layer's moments.
        mask: Which weights may differ from zero, of the weight's shape.
        dense: The dense weight, towards which the ridge pulls.
        ridge: The pull, as a share of the inputs' mean variance (mean square, if not centred); tenfold where rows are
            fewer than ten times columns. Inputs that hardly change, as behind layers that are all but empty, count as
            if a hundredth of their mean square were variance: without that, enormous weights would make outputs of
            rounding errors, exact until the next step of a training.
        centred: Whether a constant may be added to every output; see :meth:`Moments.best_constant`.

    Returns:
        A tensor of the weight's shape, exactly zero outside the mask; None if the system is singular.
    """
    a, c = moments.system(centred)
    few = 10.0 if moments.rows < 10 * c.shape[2] else 1.0
    squares = (moments.xx.diagonal(dim1=1, dim2=2) + moments.x.square()).mean(1)
    pull = few * ridge * torch.maximum(a.diagonal(dim1=1, dim2=2).mean(1), _LEAST_SPREAD * squares)
    if not (pull.isfinite().all() and pull.any()):
        return None
    pull = torch.where(pull > 0, pull, 1.0)  # a group whose inputs never change keeps its dense weights
    kept, towards = mask.reshape(c.shape), dense.double().reshape(c.shape)
    a, c = with_ridge(a, pull), c + pull.view(-1, 1, 1) * towards
    factoring = float((kept.sum(2).double() ** 3).sum())
    iterating = 30.0 * c.numel() * c.shape[2]  # takes less time from a third of this on, but is less exact
    method = _by_factors if factoring < iterating else _by_conjugate_gradients
    enough = few * ridge >= _LEAST_RIDGE
    for precision in (torch.float32, torch.float64) if enough else (torch.float64,):
        solved = method(a.to(precision), c.to(precision), kept, (towards * kept).to(precision))
        if solved.isfinite().all():
            return solved.reshape(mask.shape).to(dense.dtype)
    return None


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


def _by_factors(a: Tensor, c: Tensor, kept: Tensor, start: Tensor) -> Tensor:
    """Solve each row on its own columns by Cholesky."""
    solved = torch.zeros_like(start)
    for factors in factorise(a, kept):
        factors.scatter(factors.solve(c), solved)
    return solved


def _by_conjugate_gradients(a: Tensor, c: Tensor, kept: Tensor, start: Tensor) -> Tensor:
    """Solve all rows at once, to a residual of `_TOLERANCE` of the right side.

    Each step lowers every row's objective, so the start is never made worse.
    """
    divide = _preconditioner(a, kept)
    solved = start.clone()
    residual = (c - solved @ a) * kept
    goal = _TOLERANCE * (c * kept).norm(dim=2)
    direction = scaled = divide(residual)
    power = (residual * scaled).sum(2, keepdim=True)
    tiny = torch.finfo(a.dtype).tiny
    for _ in range(_CONJUGATE_STEPS):
        if (residual.norm(dim=2) <= goal).all():
            break
        image = (direction @ a) * kept
        step = power / (direction * image).sum(2, keepdim=True).clamp_min(tiny)
        solved += step * direction
        residual -= step * image
        scaled = divide(residual)
        before, power = power, (residual * scaled).sum(2, keepdim=True)
        direction = scaled + power / before.clamp_min(tiny) * direction
    return solved


def _preconditioner(a: Tensor, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what divides rows by about their own parts of A, zero outside what is kept: a preconditioner.

    A is about D + F F^T, a diagonal and the few directions in which inputs vary most (a Nystrom approximation, as in
    Frangella, Tropp and Udell 2023, arXiv 2110.02820), so a row's part of A is about its own part of that, and

        (D + F F^T)^-1 = D^-1 - D^-1 F (1 + F^T D^-1 F)^-1 F^T D^-1.
    """
    groups, columns, _ = a.shape
    count = min(_DIRECTIONS, max(1, columns // 4))
    basis = torch.randn(columns, count, generator=torch.Generator().manual_seed(0)).to(a).expand(groups, -1, -1)
    for _ in range(2):
        basis = torch.linalg.qr(a @ basis).Q
    image = a @ basis
    lower = _cholesky(basis.transpose(1, 2) @ image)
    f = torch.linalg.solve_triangular(lower.transpose(1, 2), image, upper=True, left=False)
    whole = a.diagonal(dim1=1, dim2=2)
    d = torch.maximum(whole - f.square().sum(2), 1e-3 * whole)
    divided = f / d.unsqueeze(2)
    products = (f.unsqueeze(3) * divided.unsqueeze(2)).flatten(2)  # of a column's two entries, for each pair of them
    inner = (kept.to(a.dtype) @ products).unflatten(2, (count, count))
    inner.diagonal(dim1=2, dim2=3).add_(1)
    inverse = torch.cholesky_inverse(_cholesky(inner))

    def divide(rows: Tensor) -> Tensor:
        along = ((rows @ divided).unsqueeze(2) @ inverse).squeeze(2)
        return (rows / d.unsqueeze(1) - along @ divided.transpose(1, 2)) * kept

    return divide
