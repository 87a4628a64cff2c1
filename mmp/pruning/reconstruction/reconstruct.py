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
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.pruning.layers.eval_mode import evaluating
from mmp.pruning.layers.forward import Walk
from mmp.pruning.layers.products import pieces_of, product_of
from mmp.pruning.masks import Masks
from mmp.pruning.reconstruction.layer_report import LayerReport
from mmp.pruning.reconstruction.least_squares import solve_rows
from mmp.pruning.reconstruction.moments import Moments

log = logging.getLogger(__name__)

_BATCH = 64  # images
_MOST_STORED = 4 * 2**30  # bytes of targets from one pass of the dense network; beyond, it is walked, too

# A solve must not make a layer's error larger than this times what masking alone left.
_NO_WORSE = 1.0 + 1e-6
# Below this share of the variance an error is rounding (float32 products): the layer puts out what the dense one did.
_NOTHING_LOST = 1e-6


def reconstruct(
    model: nn.Module,
    masks: Masks,
    batches: Iterable[Tensor | Sequence[Tensor]],
    ridge: float = 0.01,
    dense: nn.Module | None = None,
    targets: Mapping[str, Tensor] | None = None,
) -> list[LayerReport]:
    """Mask a dense model and re-solve what is left of every layer, in place.

    Args:
        model: A trained dense network; it ends pruned and re-solved. Its mode is left as it was.
        masks: Masks by weight name; they stay exactly as they are.
        batches: Unlabelled images, or (images, anything) pairs; on the model's device.
        ridge: lambda as a share of the mean squared input of a layer; tenfold where there are fewer rows than ten
            times the columns.
        dense: The network whose outputs are the targets, left as it is; a copy of ``model`` if None.
        targets: What :func:`dense_targets` returned for these masks and images, so that ``dense`` need not run.

    Returns:
        A report per layer, in forward order; layers that are never called come last.

    Raises:
        MmpError: if there are no images, a mask does not fit the model, or inside ``torch.inference_mode``.
    """
    images = _small([batch if isinstance(batch, Tensor) else batch[0] for batch in batches])
    if torch.is_inference_mode_enabled():
        raise MmpError("reconstruction cannot work inside torch.inference_mode(); use torch.no_grad() there")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise MmpError(f"mask {name!r}: the model has no such weight")
        if mask.shape != parameters[name].shape:
            shapes = f"{tuple(mask.shape)}, its weight has {tuple(parameters[name].shape)}"
            raise MmpError(f"mask {name!r} has shape {shapes}; was it made for another model?")
    dense = copy.deepcopy(model) if dense is None else dense
    placed = {name: mask.to(parameters[name].device) for name, mask in masks.items()}
    with evaluating(model, dense), torch.no_grad():
        for name, mask in placed.items():
            parameters[name].masked_fill_(~mask, 0.0)
        return _reconstruct(model, dense, placed, images, ridge, targets)


def dense_targets(dense: nn.Module, names: Iterable[str], batches: Sequence[Tensor], most: float) -> dict[str, Tensor]:
    """Return what every layer of the dense network makes of the images, from one forward pass.

    They are the same for all masks, so the jobs of a sweep can share them.

    Args:
        dense: The dense network; its mode is left as it was.
        names: Names of the weights.
        batches: Images, (B, C, H, W) each, on the network's device.
        most: Bytes beyond which it is not worth it.

    Returns:
        Rows (groups, rows, outputs per group) as ``<weight>/<batch>/<call>``; nothing if they need more bytes.

    Raises:
        MmpError: if there are no images.
    """
    found: dict[str, Tensor] = {}
    images = _small(batches)
    with evaluating(dense), torch.no_grad():
        walk = Walk(dense, names, images)
        one = sum(rows.nbytes for rows in _products(walk, images[0][:1]).values())
        if one * sum(map(len, images)) > most:
            return {}
        for number, batch in enumerate(images):
            found |= {f"{name}/{number}/{call}": rows for (name, call), rows in _products(walk, batch).items()}
    return found


def _small(batches: Iterable[Tensor]) -> list[Tensor]:
    """Return batches of at most `_BATCH` images: what a layer reads is unfolded a batch at a time."""
    images = [part for batch in batches if len(batch) for part in batch.split(_BATCH)]
    if not images:
        raise MmpError("reconstruction needs images: the calibration split is empty (raise data.calibration)")
    return images


def _products(walk: Walk, images: Tensor) -> dict[tuple[str, int], Tensor]:
    found: dict[tuple[str, int], Tensor] = {}
    calls = Counter[str]()

    def see(name: str, module: nn.Module, _: Tensor, output: Tensor) -> None:
        found[name, calls[name]] = product_of(module, output)
        calls[name] += 1

    walk.visit(images.clone(), see)
    return found


def _reconstruct(
    model: nn.Module,
    dense: nn.Module,
    masks: Mapping[str, Tensor],
    images: list[Tensor],
    ridge: float,
    targets: Mapping[str, Tensor] | None,
) -> list[LayerReport]:
    stored = dict(targets or dense_targets(dense, masks, images, _MOST_STORED))
    walk, dense_walk = Walk(model, masks, images), None if stored else Walk(dense, masks, images)
    dense_weights = dict(dense.named_parameters(remove_duplicate=False))
    reports = []
    for name in (*walk.order, *(name for name in masks if name not in walk.order)):
        start = time.perf_counter()
        before, after, status = None, None, walk.unfit(name)
        if name not in walk.order:
            status = "its module is never called"
        elif status is None:
            products = dense_walk.products(name) if dense_walk else _stored(stored, name, len(images))
            before, after, status = _reconstruct_layer(name, walk, products, masks[name], dense_weights[name], ridge)
        if status != "solved":
            log.info("%s is left as masked: %s", name, status)
        kept = int(masks[name].count_nonzero())
        reports.append(LayerReport(name, kept, before, after, status, time.perf_counter() - start))
    return reports


def _stored(targets: dict[str, Tensor], name: str, batches: int) -> Iterator[list[Tensor]]:
    """Yield a layer's targets batch by batch, and let go of them."""
    for number in range(batches):
        calls = (targets.pop(f"{name}/{number}/{call}", None) for call in itertools.count())
        found = list(itertools.takewhile(lambda rows: rows is not None, calls))
        if not found:
            raise MmpError(f"targets hold nothing of {name!r} in batch {number}; were they made for other images?")
        yield found  # type: ignore[misc]


def _reconstruct_layer(
    name: str, walk: Walk, products: Iterator[list[Tensor]], mask: Tensor, dense: Tensor, ridge: float
) -> tuple[float | None, float | None, str]:
    """Return the layer's error before and after, and ``solved`` or why it is left as it was."""
    owner, norm, biases = walk.owner(name), walk.norm_behind(name), walk.biases(name)
    weight = owner.weight
    assert isinstance(weight, Tensor)
    centred = norm is not None or all(bias is not None for bias in biases)
    batches = zip(walk.inputs(name), products, strict=True)
    calls = ((*read, y) for batch in batches for read, y in zip(*batch, strict=True))
    moments = Moments.of(pair for module, inputs, y in calls for pair in pieces_of(module, inputs, y.to(inputs.device)))
    before = moments.error(weight)
    if not math.isfinite(before):
        return None, None, "what it reads or should make is not finite"
    if before < _NOTHING_LOST and mask.all():
        return before, before, "solved"
    solved = solve_rows(moments, mask, dense, ridge, centred)
    if solved is None:
        return before, before, "the system is singular"
    constant = moments.best_constant(solved) if centred else None
    after = moments.error(solved, constant)
    if not after <= before * _NO_WORSE:  # nor if it is not a number
        return before, before, "the solve would make its output worse"
    weight.copy_(solved)
    if constant is not None and norm is not None:
        mean = norm.running_mean
        assert isinstance(mean, Tensor)
        mean.sub_(constant)
    elif constant is not None:
        for bias in {id(bias): bias for bias in biases if bias is not None}.values():
            bias.add_(constant)
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
