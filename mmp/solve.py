"""Least squares under a mask: second moments of a layer's inputs and targets, and the rows solved from them."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

_CONJUGATE_STEPS = 200
_TOLERANCE = 1e-7
_BLOCK = 2**24  # numbers in one batch of systems: 128 MiB


class Moments:
    """Streamed second moments of one layer: what its squared output error is a function of.

    Sums are kept in float64; the products of one batch are taken in float32.

    Args:
        owner: The layer; its weight is (outputs, columns per group, ...).
        centred: Whether a constant may be added to every output, by a bias or by batch norm.
    """

    def __init__(self, owner: nn.Module, centred: bool) -> None:
        groups = getattr(owner, "groups", 1)
        weight = owner.weight
        assert isinstance(weight, Tensor)
        self.groups, self.outputs, self.columns = groups, weight.shape[0] // groups, weight[0].numel()
        self.centred, self.rows = centred, 0
        zeros = partial(torch.zeros, dtype=torch.float64, device=weight.device)
        self._xx, self._x = zeros(groups, self.columns, self.columns), zeros(groups, self.columns)
        self._yx, self._y = zeros(groups, self.outputs, self.columns), zeros(groups, self.outputs)
        self._yy = zeros(groups, self.outputs)

    def add(self, inputs: Tensor, dense_inputs: Tensor, dense: nn.Module) -> None:
        """Add rows.

        Args:
            inputs: What the layer reads in the pruned network, (groups, rows, columns).
            dense_inputs: What it reads in the dense network, of the same shape.
            dense: The dense layer, which makes the targets.
        """
        weight, bias = dense.weight, dense.bias
        assert isinstance(weight, Tensor)
        targets = dense_inputs @ self._grouped(weight.float()).transpose(1, 2)
        if isinstance(bias, Tensor):
            targets = targets + bias.float().view(self.groups, 1, self.outputs)
        self._xx += inputs.transpose(1, 2) @ inputs
        self._yx += targets.transpose(1, 2) @ inputs
        self._yy += targets.square().sum(1)
        self._x += inputs.sum(1)
        self._y += targets.sum(1)
        self.rows += inputs.shape[1]

    def _grouped(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, self.outputs, self.columns)

    @property
    def system(self) -> tuple[Tensor, Tensor]:
        """A (groups, columns, columns) and C (groups, outputs, columns) of the normal equations w A = C, per row."""
        a, c = self._xx / self.rows, self._yx / self.rows
        if self.centred:
            x, y = self._x / self.rows, self._y / self.rows
            a, c = a - x.unsqueeze(2) * x.unsqueeze(1), c - y.unsqueeze(2) * x.unsqueeze(1)
        return a, c

    def best_bias(self, weight: Tensor) -> Tensor:
        """Return the constant per output, (outputs,), that makes mean output and mean target equal."""
        means = (self._grouped(weight.double()) @ self._x.unsqueeze(2)).squeeze(2)
        return ((self._y - means) / self.rows).flatten().to(weight.dtype)

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """Return the mean squared output error as a share of the targets' variance."""
        w = self._grouped(weight.double())
        b = torch.zeros_like(self._y) if bias is None else bias.double().view(self.groups, self.outputs)
        squares = ((w @ self._xx - 2 * self._yx) * w).sum(2) + self._yy
        squares += self.rows * b.square() + 2 * b * ((w @ self._x.unsqueeze(2)).squeeze(2) - self._y)
        variance = (self._yy - self._y.square() / self.rows).sum()
        return max(0.0, float(squares.sum() / variance.clamp_min(1e-30)))


def solve_rows(moments: Moments, mask: Tensor, dense: Tensor, ridge: float) -> Tensor | None:
    """Return the weight that minimises a layer's error under its mask.

    Args:
        moments: The layer's moments.
        mask: Which weights may differ from zero, of the weight's shape.
        dense: The dense weight, towards which the ridge pulls.
        ridge: The pull, as a share of the mean squared input; tenfold where rows are fewer than ten times columns.

    Returns:
        A tensor of the weight's shape, exactly zero outside the mask; None if the system is singular.
    """
    a, c = moments.system
    few = 10.0 if moments.rows < 10 * moments.columns else 1.0
    pull = few * ridge * a.diagonal(dim1=1, dim2=2).mean(1)
    kept = mask.reshape(moments.groups, moments.outputs, moments.columns)
    towards = dense.double().reshape(kept.shape)
    start = towards * kept
    solved = torch.zeros_like(start)
    for group in range(moments.groups):
        if not pull[group] > 0:
            return None
        one = a[group].clone()
        one.diagonal().add_(pull[group])
        right = c[group] + pull[group] * towards[group]
        counts = kept[group].sum(1)
        factoring = float((counts.double() ** 3).sum())
        iterating = 100.0 * counts.numel() * moments.columns**2
        method = _by_factors if factoring < iterating else _by_conjugate_gradients
        solved[group] = method(one, right, kept[group], start[group])
    return solved.reshape(mask.shape).to(dense.dtype) if torch.isfinite(solved).all() else None


def _by_factors(a: Tensor, c: Tensor, kept: Tensor, start: Tensor) -> Tensor:
    """Solve each row on its own columns by Cholesky, rows with about as many columns together."""
    solved = torch.zeros_like(start)
    counts = kept.sum(1)
    order = counts.argsort()
    first = int((counts == 0).sum())
    while first < len(order):
        widest = int(counts[order[first]])
        block = order[first:][: max(1, _BLOCK // max(1, widest**2))]
        rows = block[counts[block] <= math.ceil(1.1 * widest)]
        first += len(rows)
        width = int(counts[rows].max())
        # The columns of each row, its own first; what is behind them is cut off the system by ones on the diagonal.
        columns = (~kept[rows]).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        own = torch.arange(width, device=a.device) < counts[rows].unsqueeze(1)
        systems = a[columns.unsqueeze(2), columns.unsqueeze(1)]
        systems *= own.unsqueeze(2) & own.unsqueeze(1)
        systems.diagonal(dim1=1, dim2=2).add_((~own).to(a.dtype))
        factors, failed = torch.linalg.cholesky_ex(systems)
        right = c[rows].gather(1, columns) * own
        values = torch.cholesky_solve(right.unsqueeze(2), factors).squeeze(2) * own
        values[failed != 0] = torch.nan
        solved[rows] = solved[rows].scatter_(1, columns, values)
    return solved


def _by_conjugate_gradients(a: Tensor, c: Tensor, kept: Tensor, start: Tensor) -> Tensor:
    """Solve all rows at once; each step lowers every row's objective, so the start is never made worse."""
    scale = a.diagonal().reciprocal()
    solved = start.clone()
    residual = (c - solved @ a) * kept
    goal = _TOLERANCE * (c * kept).norm(dim=1)
    direction = scaled = residual * scale
    power = (residual * scaled).sum(1)
    for _ in range(_CONJUGATE_STEPS):
        if (residual.norm(dim=1) <= goal).all():
            break
        image = (direction @ a) * kept
        step = power / (direction * image).sum(1).clamp_min(torch.finfo(a.dtype).tiny)
        solved += step.unsqueeze(1) * direction
        residual -= step.unsqueeze(1) * image
        scaled = residual * scale
        before, power = power, (residual * scaled).sum(1)
        ratio = power / before.clamp_min(torch.finfo(a.dtype).tiny)
        direction = scaled + ratio.unsqueeze(1) * direction
    return solved
