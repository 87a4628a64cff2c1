"""Least squares under a mask: the rows of a weight solved from the moments of its inputs and targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmp.pruning.reconstruction.moments import Moments
from mmp.pruning.row_systems import _cholesky, factorise, with_ridge

_LEAST_SPREAD = 0.01
_LEAST_RIDGE = 1e-5  # times the mean squared input, with which float32 tells the directions of inputs apart
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
