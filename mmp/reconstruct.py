"""Reconstruction: kept weights re-solved in closed form, so that each layer puts out what the dense network's did.

Layers are taken in forward order. For each, the inputs X come from the network as it is by then (pruned and re-solved
up to here) and the targets Y from the dense one, on the same unlabelled images. With the mask's support S of a row,

    min over w_S of  |X_S w_S - y|^2 / n + lambda |w_S - w_S^dense|^2

is one small linear system per row (as in OBC and SparseGPT, Frantar et al. 2022 and 2023, arXiv 2208.11580 and
2301.00774, but against the dense network's outputs on the dense network's inputs). Where the layer has a bias, or batch
norm behind it takes one up, X and Y are centred and the bias or the running mean is refitted.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.masks import Masks
from mmp.signals import forget_cached
from mmp.solve import Moments, solve_rows
from mmp.walk import Walk, columns_of

log = logging.getLogger(__name__)

# A solve must not make a layer's error larger than this times what masking alone left.
_NO_WORSE = 1.0 + 1e-6


@dataclass(frozen=True)
class LayerReport:
    """What reconstruction did to one layer.

    Attributes:
        name: The weight's name.
        kept: Number of weights that the mask keeps.
        before: Output error of the masked layer, as a share of the variance of the dense output.
        after: The same, of the layer as it is left.
        status: ``solved``, or why the layer was left as it was.
        seconds: Time spent on it.
    """

    name: str
    kept: int
    before: float | None
    after: float | None
    status: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for ``result.json``."""
        return asdict(self)


def reconstruct(
    model: nn.Module,
    masks: Masks,
    batches: Iterable[Tensor | Sequence[Tensor]],
    ridge: float = 0.01,
    dense: nn.Module | None = None,
) -> list[LayerReport]:
    """Mask a dense model and re-solve what is left of every layer, in place.

    Args:
        model: A trained dense network; it ends pruned and re-solved. Its mode is left as it was.
        masks: Masks by weight name; they stay exactly as they are.
        batches: Unlabelled images, or (images, anything) pairs, re-iterable; on the model's device.
        ridge: lambda as a share of the mean squared input of a layer; tenfold where there are fewer rows than ten
            times the columns.
        dense: The network whose outputs are the targets, left as it is; a copy of ``model`` if None.

    Returns:
        A report per layer, in forward order; layers that are never called come last.

    Raises:
        MmpError: if there are no images, or a mask names no weight of the model.
    """
    images = [batch if isinstance(batch, Tensor) else batch[0] for batch in batches]
    if not images:
        raise MmpError("reconstruction needs images: the calibration split is empty (raise data.calibration)")
    parameters = dict(model.named_parameters())
    for name in masks:
        if name not in parameters:
            raise MmpError(f"mask {name!r}: the model has no such weight")
    dense = copy.deepcopy(model) if dense is None else dense
    modes = {network: {m: m.training for m in network.modules()} for network in (model, dense)}
    try:
        for network in (model, dense):
            forget_cached(network)
            network.eval()
        placed = {name: mask.to(parameters[name].device) for name, mask in masks.items()}
        with torch.no_grad():
            for name, mask in placed.items():
                parameters[name].mul_(mask)
            return _reconstruct(model, dense, placed, images, ridge)
    finally:
        for network, flags in modes.items():
            forget_cached(network)
            for module, training in flags.items():
                module.training = training


def _reconstruct(
    model: nn.Module, dense: nn.Module, masks: Mapping[str, Tensor], images: list[Tensor], ridge: float
) -> list[LayerReport]:
    target, pruned = Walk(dense, masks, images), Walk(model, masks, images)
    reports = []
    for name in (*pruned.order, *(name for name in masks if name not in pruned.order)):
        start = time.perf_counter()
        before, after, status = None, None, pruned.unfit(name)
        if name not in pruned.order:
            status = "its module is never called"
        elif status is None:
            before, after, status = _reconstruct_layer(name, target, pruned, masks[name], ridge)
        if status != "solved":
            log.info("%s is left as masked: %s", name, status)
        kept = int(masks[name].count_nonzero())
        reports.append(LayerReport(name, kept, before, after, status, time.perf_counter() - start))
    return reports


def _reconstruct_layer(name: str, target: Walk, pruned: Walk, mask: Tensor, ridge: float) -> tuple[float, float, str]:
    """Return the layer's error before and after, and ``solved`` or why it is left as it was."""
    owner, dense, norm = pruned.owner(name), target.owner(name), pruned.norm_behind(name)
    weight, bias, dense_weight = owner.weight, owner.bias, dense.weight
    assert isinstance(weight, Tensor)
    assert isinstance(dense_weight, Tensor)
    assert isinstance(bias, Tensor | None)
    moments = Moments(owner, centred=bias is not None or norm is not None)
    unchanged = bool(mask.all())
    for batch in zip(target.inputs(name), pruned.inputs(name), strict=True):
        for dense_input, pruned_input in zip(*batch, strict=True):
            unchanged = unchanged and torch.equal(dense_input, pruned_input)
            moments.add(columns_of(owner, pruned_input), columns_of(dense, dense_input), dense)
    before = moments.error(weight, bias)
    if unchanged:
        return before, before, "solved"  # nothing is missing, and nothing in front of it has changed
    solved = solve_rows(moments, mask, dense_weight, ridge)
    if solved is None:
        return before, before, "the system is singular"
    constant = moments.best_bias(solved) if moments.centred else None
    after = moments.error(solved, constant)
    if not after <= before * _NO_WORSE:  # nor if it is not a number
        return before, before, "the solve would make its output worse"
    weight.copy_(solved)
    if bias is not None and constant is not None:
        bias.copy_(constant)
    elif norm is not None and constant is not None:
        norm.running_mean -= constant.to(norm.running_mean)
    return before, after, "solved"


def summary_of(reports: Sequence[LayerReport]) -> Mapping[str, Any]:
    """Return what a result says of a reconstruction in one line: layers solved, mean errors, seconds."""
    solved = [report for report in reports if report.status == "solved" and report.before is not None]
    count = max(len(solved), 1)
    return {
        "solved": len(solved),
        "left": len(reports) - len(solved),
        "error_before": sum(report.before or 0.0 for report in solved) / count,
        "error_after": sum(report.after or 0.0 for report in solved) / count,
        "seconds": sum(report.seconds for report in reports),
    }
