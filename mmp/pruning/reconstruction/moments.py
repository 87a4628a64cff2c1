"""Second moments of a layer's inputs and targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FEW = 10  # rows for each column; with fewer, a solution may fit them and no others
_SINGLE = 2**14  # rows that are summed in float32 before the sum is added in float64
_ROUNDING = 1e-12  # of the mean square; a variance below it comes from rounding of float32 products
_WIDTH = 128  # columns of a symmetric matrix in one block, so that only one half of the matrix is computed


@dataclass(frozen=True)
class Moments:
    """Means and covariances, per group, of a layer's inputs X and targets Y, from which a weight's error follows.

    X are the rows that the weight is multiplied by, and Y the products that it should have with them. The moments are
    float64, except for the covariance of X, which has the type of X.

    Attributes:
        rows: Number of rows.
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
        """Return the moments of a stream of pairs, one of which is in memory at a time.

        Args:
            pairs: At least one pair of X (groups, rows, columns) and Y (groups, rows, outputs per group).
        """
        sums = MomentSums()
        sums.add(pairs)
        return sums.moments()

    @property
    def few(self) -> bool:
        """Whether there are so few rows that a solution may fit them and no others."""
        return self.rows < FEW * self.xx.shape[1]

    def every(self, step: int) -> Moments:
        """Return the moments of every ``step``-th output of each group, with the same inputs."""
        return replace(self, y=self.y[:, ::step], yx=self.yx[:, ::step], yy=self.yy[:, ::step])

    def rows_of(self, weight: Tensor) -> Tensor:
        """View a weight, or its mask, as (groups, outputs per group, columns)."""
        return weight.reshape(self.yx.shape)

    def joined(self, other: Moments) -> Moments:
        """Return the moments of the rows of both. The covariances take the place of these ones in memory."""
        rows = self.rows + other.rows
        mine, theirs = self.rows / rows, other.rows / rows
        x, y = (self.x - other.x).unsqueeze(1), (self.y - other.y).unsqueeze(2)
        xx = self.xx.mul_(mine).add_(other.xx, alpha=theirs)
        return Moments(
            rows=rows,
            x=mine * self.x + theirs * other.x,
            y=mine * self.y + theirs * other.y,
            xx=xx.baddbmm_(x.transpose(1, 2).to(xx.dtype), x.to(xx.dtype), alpha=mine * theirs),
            yx=mine * self.yx + theirs * other.yx + mine * theirs * y * x,
            yy=mine * self.yy + theirs * other.yy + mine * theirs * y.squeeze(2).square(),
        )

    def system(self, centred: bool) -> tuple[Tensor, Tensor]:
        """Return the normal equations w A = C of all rows w.

        Args:
            centred: Whether a constant may be added to every output, by a bias or a batch norm.

        Returns:
            A, (groups, columns, columns), and C, (groups, outputs per group, columns).
        """
        if centred:
            return self.xx, self.yx
        x = self.x.unsqueeze(1)
        return self.xx + x.transpose(1, 2) * x, self.yx + self.y.unsqueeze(2) * x

    def best_constant(self, weight: Tensor) -> Tensor:
        """Return the constant for every output, (outputs,), that makes the mean output equal to the mean target.

        Args:
            weight: The weight, of any shape with the elements (outputs, columns).
        """
        return (self.y - self._means(self._grouped(weight))).flatten()

    @property
    def variance(self) -> float:
        """Sum of the variances of all targets; 0 if they vary by rounding only, such as the targets of a single row."""
        total = float(self.yy.sum())
        return 0.0 if total <= _ROUNDING * float((self.yy + self.y.square()).sum()) else total

    def share(self, error: float) -> float | None:
        """Return a squared error as a share of the targets' variance, None if the targets do not vary."""
        return error / self.variance if self.variance else None

    def squared_error(self, weight: Tensor, constant: Tensor | None = None) -> float:
        """Return the mean squared error of a weight, summed over all outputs.

        For float32 inputs, the error is exact to about 1e-8 of the targets' variance, as products are computed in the
        type of X.

        Args:
            weight: The weight, of any shape with the elements (outputs, columns).
            constant: A constant that is added to every output, (outputs,); 0 if None.
        """
        w = self._grouped(weight)
        offset = self._means(w) - self.y + (0.0 if constant is None else constant.view_as(self.y))
        squares = self._squares(w) - 2 * (self.yx * w).sum(2) + self.yy + offset.square()
        return float(squares.sum().clamp_min(0.0))  # clamp_min propagates NaN

    def _squares(self, grouped: Tensor) -> Tensor:
        """Return w xx w^T of every row, (groups, outputs per group), from one half of xx."""
        w, squares = grouped.to(self.xx.dtype), torch.zeros_like(self.yy)
        for block in _blocks(w.shape[2]):
            own, others = w[..., block], w[..., block.stop :]
            image = own @ self.xx[:, block, block] + 2 * (others @ self.xx[:, block.stop :, block])
            squares += (image.double() * grouped[..., block]).sum(2)
        return squares

    def _grouped(self, weight: Tensor) -> Tensor:
        return self.rows_of(weight.double())

    def _means(self, grouped: Tensor) -> Tensor:
        return (grouped @ self.x.unsqueeze(2)).squeeze(2)


class MomentSums:
    """Sums over rows of X and Y, from which :class:`Moments` follow.

    The means of the first pair are subtracted before the sums in float32, to avoid cancellation.
    """

    def __init__(self) -> None:
        self._rows, self._pending = 0, 0
        self._shifts: list[Tensor] = []
        self._parts: list[Tensor] = []  # sums in the type of X, of the rows that are pending
        self._sums: list[Tensor] = []  # the same in float64, of the rows before

    @property
    def rows(self) -> int:
        """Number of rows so far."""
        return self._rows

    def add(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Add pairs of X (groups, rows, columns) and Y (groups, rows, outputs per group)."""
        for inputs, targets in pairs:
            if not self._shifts:
                self._begin(inputs, targets)
            if self._pending >= _SINGLE:
                self._pending, self._sums = 0, _added(self._sums, self._parts)
                for part in self._parts:
                    part.zero_()
            x, y = inputs - self._shifts[0], targets - self._shifts[1]
            xx, of_x, of_y, yx, yy = self._parts
            for block in _blocks(x.shape[2]):
                xx[:, block, block.start :].baddbmm_(x[..., block].transpose(1, 2), x[..., block.start :])
            of_x.add_(x.sum(1))
            of_y.add_(y.sum(1))
            yx.baddbmm_(y.transpose(1, 2), x)
            yy.add_(y.square().sum(1))
            self._rows, self._pending = self._rows + x.shape[1], self._pending + x.shape[1]

    def moments(self) -> Moments:
        """Return the moments of all rows so far, at least one; nothing can be added afterwards."""
        parts, sums, rows = self._parts, self._sums, self._rows
        xx = (sums[0].add_(parts[0]) if sums else parts[0]).div_(rows)
        x, y, yx, yy = (total.div_(rows) for total in _added(sums[1:], parts[1:]))
        mean = x.to(xx.dtype)
        xx.baddbmm_(mean.unsqueeze(2), mean.unsqueeze(1), alpha=-1)
        for block in _blocks(xx.shape[2]):
            xx[:, block.stop :, block] = xx[:, block, block.stop :].transpose(1, 2)
        return Moments(
            rows=rows,
            x=x + self._shifts[0].squeeze(1),
            y=y + self._shifts[1].squeeze(1),
            xx=xx.to(parts[0].dtype),
            yx=yx.sub_(y.unsqueeze(2) * x.unsqueeze(1)),
            yy=yy.sub_(y.square()),
        )

    def _begin(self, inputs: Tensor, targets: Tensor) -> None:
        self._shifts = [inputs.mean(1, keepdim=True), targets.mean(1, keepdim=True)]
        groups, columns, outputs = len(inputs), inputs.shape[2], targets.shape[2]
        shapes = ((columns, columns), (columns,), (outputs,), (outputs, columns), (outputs,))
        self._parts = [inputs.new_zeros(groups, *shape) for shape in shapes]


def _blocks(columns: int) -> list[slice]:
    return [slice(start, min(start + _WIDTH, columns)) for start in range(0, columns, _WIDTH)]


def _added(sums: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
    """Return sums plus parts in float64, in place if there are sums."""
    if not sums:
        return [part.double() for part in parts]
    return [total.add_(part) for total, part in zip(sums, parts, strict=True)]
