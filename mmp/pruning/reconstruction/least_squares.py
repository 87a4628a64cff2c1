"""Least squares under a mask: the rows of a weight, solved from the moments of a layer's inputs and targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmp.pruning.reconstruction.moments import Moments
from mmp.pruning.row_systems import cholesky_or_nan, factorise, with_ridge

_LEAST_SPREAD = 0.01  # of the mean squared input, the variance that the ridge counts at least
_LEAST_RIDGE = 1e-5  # of the mean squared input; below it, float32 does not separate the directions of the inputs
_CONJUGATE_STEPS = 200
_TOLERANCE = 1e-5
_DIRECTIONS = 32  # directions of largest variance in the preconditioner

Solver = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def solve_rows(
    moments: Moments, mask: Tensor, dense: Tensor, ridge: float, centred: bool, solver: Solver | None = None
) -> Tensor | None:
    """Return the weight that minimises a layer's squared error under its mask, plus the ridge.

    The ridge is ``ridge`` times the inputs' mean variance (mean square, if not centred), and ten times that with fewer
    rows than ten times the columns. It counts at least a hundredth of the mean square as variance. Inputs that hardly
    vary, such as those behind almost empty layers, would otherwise get enormous weights, which are exact only until the
    next training step.

    Args:
        moments: The layer's moments.
        mask: Bool tensor of the weight's shape, True where the weight may differ from zero.
        dense: The dense weight, towards which the ridge pulls.
        ridge: The ridge, as a share of the inputs' mean variance.
        centred: Whether a constant may be added to every output; see :meth:`Moments.best_constant`.
        solver: :func:`by_factors` or :func:`by_conjugate_gradients`; the faster of the two if None.

    Returns:
        A tensor of the weight's shape, exactly 0.0 outside the mask; None if the system is singular.
    """
    a, c = moments.system(centred)
    few = 10.0 if moments.few else 1.0
    squares = (moments.xx.diagonal(dim1=1, dim2=2) + moments.x.square()).mean(1)
    pull = few * ridge * torch.maximum(a.diagonal(dim1=1, dim2=2).mean(1), _LEAST_SPREAD * squares)
    if not (pull.isfinite().all() and pull.any()):
        return None
    pull = torch.where(pull > 0, pull, 1.0)  # a group whose inputs never change keeps its dense weights
    kept, towards = mask.reshape(c.shape), dense.double().reshape(c.shape)
    a, c = with_ridge(a, pull), c + pull.view(-1, 1, 1) * towards
    solver = solver or _faster(kept)
    enough = few * ridge >= _LEAST_RIDGE
    for precision in (torch.float32, torch.float64) if enough else (torch.float64,):
        solved = solver(a.to(precision), c.to(precision), kept, (towards * kept).to(precision))
        if solved.isfinite().all():
            return solved.reshape(mask.shape).to(dense.dtype).masked_fill(~mask, 0.0)  # 0.0 and not -0.0
    return None


def _faster(kept: Tensor) -> Solver:
    """Return the solver to use for the kept columns of all rows, (groups, rows, columns)."""
    factoring = float((kept.sum(2).double() ** 3).sum())
    # Conjugate gradients are faster from a third of this on, but less exact.
    iterating = 30.0 * kept.numel() * kept.shape[2]
    return by_factors if factoring < iterating else by_conjugate_gradients


def by_factors(a: Tensor, c: Tensor, kept: Tensor, start: Tensor) -> Tensor:
    """Solve w A = C for each row on its own columns, by Cholesky factorisation.

    Args:
        a: Symmetric matrices A, (groups, columns, columns).
        c: Right sides C, (groups, rows, columns).
        kept: Bool tensor (groups, rows, columns), True for the columns of each row.
        start: Ignored, except for its shape and type.

    Returns:
        Solutions w, (groups, rows, columns); zero outside ``kept``, NaN where a system is not positive definite.
    """
    solved = torch.zeros_like(start)
    for factors in factorise(a, kept):
        factors.scatter(factors.solve(c), solved)
    return solved


def by_conjugate_gradients(a: Tensor, c: Tensor, kept: Tensor, start: Tensor) -> Tensor:
    """Solve w A = C for all rows at once, by preconditioned conjugate gradients.

    It stops at a residual of `_TOLERANCE` times the right side. Every step lowers the objective of every row, so the
    result is never worse than the start.

    Args:
        a: Symmetric matrices A, (groups, columns, columns).
        c: Right sides C, (groups, rows, columns).
        kept: Bool tensor (groups, rows, columns), True for the columns of each row.
        start: Where to start, (groups, rows, columns); zero outside ``kept``.

    Returns:
        Solutions w, (groups, rows, columns); zero outside ``kept``.
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
    """Return a preconditioner: a function that applies an approximate inverse of each row's kept block of A.

    A is approximately D + F F^T, a diagonal matrix and the few directions of largest variance of the inputs (a Nystrom
    approximation, as in Frangella, Tropp and Udell 2023, arXiv 2110.02820). A row's block of A is approximately the
    same block of D + F F^T, whose inverse is

        (D + F F^T)^-1 = D^-1 - D^-1 F (1 + F^T D^-1 F)^-1 F^T D^-1.
    """
    groups, columns, _ = a.shape
    count = min(_DIRECTIONS, max(1, columns // 4))
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(columns, count, generator=generator, device="cpu").to(a).expand(groups, -1, -1)
    for _ in range(2):
        basis = torch.linalg.qr(a @ basis).Q
    image = a @ basis
    lower = cholesky_or_nan(basis.transpose(1, 2) @ image)
    f = torch.linalg.solve_triangular(lower.transpose(1, 2), image, upper=True, left=False)
    whole = a.diagonal(dim1=1, dim2=2)
    d = torch.maximum(whole - f.square().sum(2), 1e-3 * whole)
    divided = f / d.unsqueeze(2)
    products = (f.unsqueeze(3) * divided.unsqueeze(2)).flatten(2)  # for each column, of all pairs of its entries
    inner = (kept.to(a.dtype) @ products).unflatten(2, (count, count))
    inner.diagonal(dim1=2, dim2=3).add_(1)
    inverse = torch.cholesky_inverse(cholesky_or_nan(inner))

    def divide(rows: Tensor) -> Tensor:
        along = ((rows @ divided).unsqueeze(2) @ inverse).squeeze(2)
        return (rows / d.unsqueeze(1) - along @ divided.transpose(1, 2)) * kept

    return divide
