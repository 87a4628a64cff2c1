"""Optimal Brain Surgeon for whole channels: the order in which sets of channels can go with the least output error.

If a weight W loses the columns k and its other columns are re-solved, its squared output error increases by

    tr(W_k ([H^-1]_kk)^-1 W_k^T),

where H is the covariance of its inputs on the columns that it still has (Hassibi and Stork 1992; for columns of a
layer: ZipLM, Kurtic et al. 2023, arXiv 2302.04089). The cheapest set goes first. W and H^-1 are then updated, and the
other sets are scored again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmp.errors import MmpError
from mmp.pruning.channels.group import ChannelGroup, Part
from mmp.pruning.row_systems import cholesky_or_nan, damped, regularised

_ROUND = 16  # the least number of sets that go before all others are scored again
_SHARE = 1 / 32  # of the remaining sets, goes in one round if that is more
_NEAR = 4  # for each set that goes, the cheapest sets that are compared one by one; all of them, if there are no more
_WIDEST = 8192  # columns that are solved together; for more, H is divided into diagonal blocks


def removal_order(
    group: ChannelGroup,
    weights: Mapping[str, Tensor],
    statistics: Mapping[str, Mapping[str, Tensor]],
    fisher: bool = False,
) -> Tensor:
    """Return the place of every set of channels in the order of removal, divided by the number of sets.

    The cost of a set is the sum over the weights that read it. Each error is a share of the variance of that weight's
    outputs, so that a weight with large outputs does not decide alone.

    Pairs of queries and keys, which no weight reads, have the order of :func:`_order_of_pairs`.

    Args:
        group: The group.
        weights: The weights that read the group's channels, by name; others are ignored.
        statistics: Their ``input_covariance``, by name, from :func:`mmp.pruning.calibration_statistics.collect`.
        fisher: Whether the error of every output counts times its mean squared gradient, ``squared_output_gradient``.

    Returns:
        A float64 tensor (sets,) on the CPU, in [0, 1); 0 is removed first.

    Raises:
        MmpError: if a weight or a statistic is missing, does not fit, or is not finite.
    """
    if not group.readers:
        return _order_of_pairs(group, weights, statistics)
    systems = [system for reader in group.readers for system in _systems(group, reader, weights, statistics, fisher)]
    left, order = torch.arange(len(group), device="cpu"), torch.zeros(len(group), dtype=torch.float64, device="cpu")
    while len(left):
        count = max(_ROUND, int(_SHARE * len(left)))
        near = left[_costs(systems, len(group))[left].argsort(stable=True)[: _NEAR * count]].sort().values
        count = count if len(left) > len(near) else len(left)
        going = _cheapest([system.only(near) for system in systems], near, count)
        gone = len(group) - len(left)
        order[going] = torch.arange(gone, gone + len(going), dtype=torch.float64, device="cpu") / len(group)
        left = left[~torch.isin(left, going)]
        for system in systems:
            system.remove(going)
        systems = [system.only(left) for system in systems]
    return order


def _order_of_pairs(
    group: ChannelGroup, weights: Mapping[str, Tensor], statistics: Mapping[str, Mapping[str, Tensor]]
) -> Tensor:
    """Return the places of pairs of a query and a key: those that add least to the scores of a head go first.

    A pair adds about the variance w H w^T of its query times that of its key. The mean of the query, with its bias, is
    left out, although it is multiplied by a key that varies.
    """
    squares = torch.ones(len(group), dtype=torch.float64, device="cpu")
    for part in (part for part in group.channels if part.side == "out"):
        weight = _of(part, group, "weights", weights).detach().double().flatten(1)
        covariance = _of(part, group, "input_covariance", statistics.get("input_covariance", {})).to(weight)
        if len(covariance) != 1 or covariance.shape[1] != weight.shape[1]:
            raise MmpError(_misfit(part, weight, covariance))
        squares *= (weight @ covariance[0] * weight).sum(1).cpu()[group.channels[part]].prod(1)
    if not squares.isfinite().all():
        raise MmpError(f"{group.name!r} or its statistics hold NaN or infinity; the checkpoint may be damaged")
    return squares.argsort(stable=True).argsort().double() / len(group)


@dataclass(frozen=True)
class _System:
    """The columns that some sets of channels are in one weight.

    Attributes:
        sets: The numbers of the sets, (sets,), on the CPU.
        weight: The columns, scaled so that squared errors add up, (sets, columns of a set, outputs).
        inverse: H^-1 of the columns, (sets, columns of a set, sets, columns of a set).
    """

    sets: Tensor
    weight: Tensor
    inverse: Tensor

    def costs(self) -> Tensor:
        """Return the increase of the error by the removal of each set, (sets,)."""
        blocks = self.inverse.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        half = torch.linalg.solve_triangular(cholesky_or_nan(blocks), self.weight, upper=False)
        return half.square().sum((1, 2))

    def only(self, sets: Tensor) -> _System:
        """Return a copy of the system of some sets."""
        own = torch.isin(self.sets, sets)
        at = own.nonzero().flatten().to(self.inverse.device)
        weight = self.weight[at]
        return _System(self.sets[own], weight, self._block(at).view(*weight.shape[:2], *weight.shape[:2]))

    def remove(self, sets: Tensor) -> None:
        """Remove some sets and re-solve the others, in place; the numbers of the removed sets have no meaning then."""
        at = torch.isin(self.sets, sets).nonzero().flatten().to(self.inverse.device)
        if not len(at):
            return
        lower = cholesky_or_nan(self._block(at))
        half = torch.linalg.solve_triangular(lower, _matrix(self.inverse[at]), upper=False)
        part = torch.linalg.solve_triangular(lower, self.weight[at].flatten(0, 1), upper=False)
        self.weight.flatten(0, 1).addmm_(half.T, part, alpha=-1)
        _matrix(self.inverse).addmm_(half.T, half, alpha=-1)

    def _block(self, at: Tensor) -> Tensor:
        """Return H^-1 on the columns of some sets as a matrix."""
        width = self.weight.shape[1]
        columns = (at.unsqueeze(1) * width + torch.arange(width, device=at.device)).flatten()
        return _matrix(self.inverse)[columns.unsqueeze(1), columns]


def _matrix(inverse: Tensor) -> Tensor:
    """Return (sets, columns of a set, other sets, columns of a set) as a matrix of columns in the same memory."""
    sets, columns, others, _ = inverse.shape
    return inverse.view(sets * columns, others * columns)


def _cheapest(systems: Sequence[_System], sets: Tensor, count: int) -> Tensor:
    """Return the sets that go next, one by one, (count,). The systems change."""
    total, going = int(sets.max()) + 1, []
    for _ in range(count):
        first = sets[_costs(systems, total)[sets].argmin()].view(1)
        for system in systems:
            system.remove(first)
        sets = sets[sets != first]
        going.append(first)
    return torch.cat(going)


def _costs(systems: Sequence[_System], total: int) -> Tensor:
    """Return the cost of every set, summed over the systems, (total,) on the CPU."""
    costs = torch.zeros(total, dtype=torch.float64, device="cpu")
    for system in systems:
        costs.index_add_(0, system.sets, system.costs().cpu())
    return costs


def _systems(
    group: ChannelGroup,
    reader: Part,
    weights: Mapping[str, Tensor],
    statistics: Mapping[str, Mapping[str, Tensor]],
    fisher: bool,
) -> list[_System]:
    """Return the systems of one reader: one, or several if it has many columns; none if its inputs do not vary."""
    tensor = _of(reader, group, "weights", weights).detach()
    weight = tensor.double().flatten(1)
    covariance = _of(reader, group, "input_covariance", statistics.get("input_covariance", {})).to(weight)
    if covariance.shape != (1, weight.shape[1], weight.shape[1]):
        raise MmpError(_misfit(reader, weight, covariance))
    if fisher:
        gradient = _of(reader, group, "squared_output_gradient", statistics.get("squared_output_gradient", {}))
        weight = damped(gradient.to(weight)).sqrt().unsqueeze(1) * weight
    h = regularised(covariance)[0]
    variance = (weight @ h * weight).sum()
    if not variance.isfinite():
        raise MmpError(f"{reader.name!r} or its statistics hold NaN or infinity; the checkpoint may be damaged")
    if not variance or not covariance.any():
        return []
    weight = weight / variance.sqrt()
    kernel = tensor[0, 0].numel()
    places = torch.arange(kernel, device="cpu")
    columns = (group.channels[reader].unsqueeze(2) * kernel + places).flatten(1).to(h.device)
    sets = torch.arange(len(group), device="cpu")
    if len(h) <= _WIDEST:
        return [_System(sets, weight.T[columns], _inverse(h, reader)[columns][..., columns])]
    return [
        _System(some, weight.T[own], _inverse(h[own.flatten()][:, own.flatten()], reader).view(*own.shape, *own.shape))
        for some in sets.tensor_split(math.ceil(columns.numel() / _WIDEST))
        for own in [columns[some.to(h.device)]]
    ]


def _misfit(part: Part, weight: Tensor, covariance: Tensor) -> str:
    return (
        f"input_covariance: {part.name!r} has {weight.shape[1]} columns, but its covariance has the shape "
        f"{tuple(covariance.shape)}; collect it for this weight"
    )


def _of(reader: Part, group: ChannelGroup, kind: str, values: Mapping[str, Tensor]) -> Tensor:
    if reader.name not in values:
        raise MmpError(f"{kind}: {reader.name!r} reads channels of {group.name!r} and is missing; add it")
    return values[reader.name]


def _inverse(h: Tensor, reader: Part) -> Tensor:
    lower, failed = torch.linalg.cholesky_ex(h)
    if failed:
        raise MmpError(
            f"input_covariance: that of {reader.name!r} is not positive definite; collect it for this weight"
        )
    return torch.cholesky_inverse(lower)
