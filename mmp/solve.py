"""Least squares under a mask: second moments of a layer's inputs and targets, and the rows solved from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_CONJUGATE_STEPS = 200
_TOLERANCE = 1e-5
_DIRECTIONS = 32
_LEAST_SPREAD = 0.01
_SINGLE = 2**14  # rows that are summed in float32, before they are added in float64
_WIDTH = 128  # columns of a symmetric matrix that are taken at a time, so that only half of it is computed
_BLOCK = {"cpu": 2**20, "cuda": 2**26}  # numbers gathered for a batch of systems; a processor's cache holds 4 MiB


@dataclass(frozen=True)
class Moments:
    """Means and covariances, per group, of what a weight is multiplied by, X, and of the products Y it should make.

    A weight's squared error is a function of them. All are float64 but the covariance of X, which has X's type.

    Attributes:
        rows: Number of rows they were taken over.
        x: Means of X, (groups, columns).
        y: Means of Y, (groups, outputs per group).
        xx: Covariance of X, (groups, columns, columns).
        yx: Covariance of Y and X, (groups, outputs per group, columns).
        yy: Variances of Y, (groups, outputs per group).
    """

    rows: int
    x: Tensor
    y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    @classmethod
    def of(cls, pairs: Iterable[tuple[Tensor, Tensor]]) -> Moments:
        """Take them over a stream of pairs, of which one is in memory at a time.

        The products of some pairs are summed in float32, less the means of the first pair, so that little cancels.

        Args:
            pairs: X (groups, rows, columns) and Y (groups, rows, outputs per group), at least one.
        """
        rows, pending, shifts, parts, sums = 0, 0, list[Tensor](), list[Tensor](), list[Tensor]()
        for inputs, targets in pairs:
            if not shifts:
                shifts = [inputs.mean(1, keepdim=True), targets.mean(1, keepdim=True)]
                groups, columns, outputs = len(inputs), inputs.shape[2], targets.shape[2]
                shapes = ((columns, columns), (columns,), (outputs,), (outputs, columns), (outputs,))
                parts = [inputs.new_zeros(groups, *shape) for shape in shapes]
            if pending >= _SINGLE:
                pending, sums = 0, _added(sums, parts)
                for part in parts:
                    part.zero_()
            x, y = inputs - shifts[0], targets - shifts[1]
            for block in _blocks(columns):
                parts[0][:, block, block.start :].baddbmm_(x[..., block].transpose(1, 2), x[..., block.start :])
            parts[1].add_(x.sum(1))
            parts[2].add_(y.sum(1))
            parts[3].baddbmm_(y.transpose(1, 2), x)
            parts[4].add_(y.square().sum(1))
            rows, pending = rows + x.shape[1], pending + x.shape[1]
        xx = (sums[0].add_(parts[0]) if sums else parts[0]).div_(rows)
        x, y, yx, yy = (total.div_(rows) for total in _added(sums[1:], parts[1:]))
        mean = x.to(xx.dtype)
        xx.baddbmm_(mean.unsqueeze(2), mean.unsqueeze(1), alpha=-1)
        for block in _blocks(columns):
            xx[:, block.stop :, block] = xx[:, block, block.stop :].transpose(1, 2)
        return cls(
            rows=rows,
            x=x + shifts[0].squeeze(1),
            y=y + shifts[1].squeeze(1),
            xx=xx.to(inputs.dtype),
            yx=yx.sub_(y.unsqueeze(2) * x.unsqueeze(1)),
            yy=yy.sub_(y.square()),
        )

    def system(self, centred: bool) -> tuple[Tensor, Tensor]:
        """A (groups, columns, columns) and C (groups, outputs, columns) of the normal equations w A = C, per row.

        Args:
            centred: Whether a constant may be added to every output, by a bias or by batch norm.
        """
        if centred:
            return self.xx, self.yx
        x = self.x.unsqueeze(1)
        return self.xx + x.transpose(1, 2) * x, self.yx + self.y.unsqueeze(2) * x

    def best_constant(self, weight: Tensor) -> Tensor:
        """Return what to add to every output, (outputs,), so that the mean output is the mean target."""
        return (self.y - self._means(self._grouped(weight))).flatten()

    def error(self, weight: Tensor, constant: Tensor | None = None) -> float:
        """Return the mean squared error of a weight, and a constant per output, as a share of the targets' variance."""
        w = self._grouped(weight)
        offset = self._means(w) - self.y + (0.0 if constant is None else constant.view_as(self.y))
        squares = self._squares(w) - 2 * (self.yx * w).sum(2) + self.yy + offset.square()
        return float((squares.sum() / self.yy.sum().clamp_min(1e-30)).clamp_min(0.0))  # which keeps what is no number

    def _squares(self, grouped: Tensor) -> Tensor:
        """Return w xx w of every row, (groups, outputs per group), from half of xx."""
        w, squares = grouped.to(self.xx.dtype), torch.zeros_like(self.yy)
        for block in _blocks(w.shape[2]):
            own, others = w[..., block], w[..., block.stop :]
            image = own @ self.xx[:, block, block] + 2 * (others @ self.xx[:, block.stop :, block])
            squares += (image.double() * grouped[..., block]).sum(2)
        return squares

    def _grouped(self, weight: Tensor) -> Tensor:
        return weight.double().reshape(self.yx.shape)

    def _means(self, grouped: Tensor) -> Tensor:
        return (grouped @ self.x.unsqueeze(2)).squeeze(2)


def _blocks(columns: int) -> list[slice]:
    return [slice(start, min(start + _WIDTH, columns)) for start in range(0, columns, _WIDTH)]


def _added(sums: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
    """Add parts to sums in float64, in place where there are sums."""
    if not sums:
        return [part.double() for part in parts]
    return [total.add_(part) for total, part in zip(sums, parts, strict=True)]


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
    iterating = 10.0 * c.numel() * c.shape[2]  # which takes as long
    method = _by_factors if factoring < iterating else _by_conjugate_gradients
    for precision in (torch.float32, torch.float64):  # the second for what is singular in the first
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
    first, most = int((counts == 0).sum()), _BLOCK[a.device.type]
    space = a.new_empty(max(most, int(counts.max()) * size))  # for all blocks: fresh memory costs as much as the copies
    while first < len(order):
        narrow = int(counts[order[first]])
        block = order[first:][: max(1, most // math.ceil(1.1 * narrow) // size)]
        rows = block[counts[block] <= math.ceil(1.1 * narrow)]
        first += len(rows)
        width = int(counts[rows].max())
        columns = (~kept[rows]).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        own = torch.arange(width, device=a.device) < counts[rows].unsqueeze(1)
        lines = (torch.div(rows, outputs, rounding_mode="floor").unsqueeze(1) * size + columns).flatten()
        whole = space[: len(lines) * size].view(-1, size)
        torch.index_select(a.view(-1, size), 0, lines, out=whole)
        systems = whole.view(*columns.shape, size).gather(2, columns.unsqueeze(1).expand(-1, width, -1))
        if not own.all():
            systems *= own.unsqueeze(2) & own.unsqueeze(1)
            systems.diagonal(dim1=1, dim2=2).add_((~own).to(a.dtype))
        lower, failed = torch.linalg.cholesky_ex(systems)
        if failed.any():
            lower[failed != 0] = torch.nan
        yield Factors(rows, columns, own, lower)


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
    divided = _divider(a, kept)
    solved = start.clone()
    residual = (c - solved @ a) * kept
    goal = _TOLERANCE * (c * kept).norm(dim=2)
    direction = scaled = divided(residual)
    power = (residual * scaled).sum(2, keepdim=True)
    tiny = torch.finfo(a.dtype).tiny
    for _ in range(_CONJUGATE_STEPS):
        if (residual.norm(dim=2) <= goal).all():
            break
        image = (direction @ a) * kept
        step = power / (direction * image).sum(2, keepdim=True).clamp_min(tiny)
        solved += step * direction
        residual -= step * image
        scaled = divided(residual)
        before, power = power, (residual * scaled).sum(2, keepdim=True)
        direction = scaled + power / before.clamp_min(tiny) * direction
    return solved


def _divider(a: Tensor, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what about divides rows, zero outside what is kept, by each row's own part of A: a preconditioner.

    A is about D + F F^T, a diagonal and the few directions in which inputs vary most (Nystrom's approximation:
    Frangella, Tropp and Udell 2023, arXiv 2110.02820), and every part of A about that part of it.
    """
    groups, columns, _ = a.shape
    count = min(_DIRECTIONS, max(1, columns // 4))
    basis = torch.randn(columns, count, generator=torch.Generator().manual_seed(0)).to(a).expand(groups, -1, -1)
    for _ in range(2):
        basis = torch.linalg.qr(a @ basis).Q
    image = a @ basis
    lower, _ = torch.linalg.cholesky_ex(basis.transpose(1, 2) @ image)
    f = torch.linalg.solve_triangular(lower.transpose(1, 2), image, upper=True, left=False)
    whole = a.diagonal(dim1=1, dim2=2)
    d = torch.maximum(whole - f.square().sum(2), 1e-3 * whole)
    scaled = f / d.unsqueeze(2)
    inner = (kept.to(a.dtype) @ (f.unsqueeze(3) * scaled.unsqueeze(2)).flatten(2)).unflatten(2, (count, count))
    inner.diagonal(dim1=2, dim2=3).add_(1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(inner)[0])

    def divided(rows: Tensor) -> Tensor:
        along = ((rows @ scaled).unsqueeze(2) @ inverse).squeeze(2)
        return (rows / d.unsqueeze(1) - along @ scaled.transpose(1, 2)) * kept

    return divided
