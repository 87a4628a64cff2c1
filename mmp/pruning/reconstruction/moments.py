"""Second moments of a layer's inputs and targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

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

        The means of the first pair are subtracted before the sums in float32, to avoid cancellation.

        Args:
            pairs: At least one pair of X (groups, rows, columns) and Y (groups, rows, outputs per group).
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
        return weight.double().reshape(self.yx.shape)

    def _means(self, grouped: Tensor) -> Tensor:
        return (grouped @ self.x.unsqueeze(2)).squeeze(2)


def _blocks(columns: int) -> list[slice]:
    return [slice(start, min(start + _WIDTH, columns)) for start in range(0, columns, _WIDTH)]


def _added(sums: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
    """Return sums plus parts in float64, in place if there are sums."""
    if not sums:
        return [part.double() for part in parts]
    return [total.add_(part) for total, part in zip(sums, parts, strict=True)]
