"""Reconstruction: each layer's kept weights are re-solved in closed form to reproduce the dense layer's output.

Layers are taken in forward order. For each, the inputs X come from the network in its current state (pruned, and
re-solved up to this layer), and the targets Y are the dense network's products for the same unlabelled images. For a
row w of the weight that keeps the columns S,

    min over w_S of  |X_S w_S - y|^2 / n + lambda |w_S - w_S^dense|^2

is one small linear system, as in OBC and SparseGPT (Frantar et al. 2022 and 2023, arXiv 2208.11580 and 2301.00774);
their targets are the dense weight's products with X, not with the dense network's own inputs. If the layer has a bias
or a batch norm behind it, X and Y are centred, and the bias or the running mean is refitted.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.pruning.layers.eval_mode import evaluating
from mmp.pruning.layers.forward import LayerWalk
from mmp.pruning.layers.products import product_of
from mmp.pruning.masks import Masks
from mmp.pruning.reconstruction.layer_report import LayerReport
from mmp.pruning.reconstruction.least_squares import solve_rows
from mmp.pruning.reconstruction.moments import Moments
from mmp.pruning.reconstruction.row_sample import SampledMoments
from mmp.tensors import memory_of

log = logging.getLogger(__name__)

_BATCH = 64  # images
_MOST_STORED = 4 * 2**30  # bytes of targets from one pass of the dense network; beyond, layer by layer

# A solve must not raise a layer's error above this multiple of the error that masking alone left.
_NO_WORSE = 1.0 + 1e-6
# The same on rows that were not solved with: where there is nothing to gain, 64 rows for each column raise it by 1/64.
_NO_WORSE_UNSEEN = 1.02
_RIDGES = (1.0, 10.0, 100.0)  # factors of the ridge to choose from where rows are few
# Below this share of the variance an error is rounding of float32 products: the outputs are the dense layer's.
_NOTHING_LOST = 1e-6
_SOLVED = "solved"


def reconstruct(
    model: nn.Module,
    masks: Masks,
    batches: Iterable[Tensor | Sequence[Tensor]],
    ridge: float = 0.01,
    dense: nn.Module | None = None,
    targets: Mapping[str, Tensor] | None = None,
    rows_per_column: int = 64,
) -> list[LayerReport]:
    """Mask a dense model and re-solve the kept weights of every layer, in place.

    Args:
        model: A trained dense network; afterwards it is pruned and re-solved. Its modes (training, eval) are restored.
        masks: Masks by weight name. Pruned weights are exactly zero afterwards.
        batches: Batches of unlabelled images (B, C, H, W), or pairs whose first element is one; on the model's device.
        ridge: lambda as a share of the mean variance of a layer's inputs; see :func:`solve_rows`.
        dense: The network that the targets come from, which is not changed; a copy of ``model`` if None.
        targets: The targets of :func:`dense_targets` for these masks and images, so that ``dense`` need not run.
        rows_per_column: Number of rows of a layer's inputs (one for each place of a convolution in each image) to solve
            with, for each column of its weight. They are drawn evenly from all images, and a quarter as many others
            to measure the errors on. 0 takes all rows, and so does a layer that has too few. With fewer than ten rows
            for each column, of at least twenty images, the ridge is chosen on images that are held out.

    Returns:
        A report for every layer, in forward order; layers that are never called come last.

    Raises:
        MmpError: if there are no images, a batch is of another type, a mask does not fit the model,
            ``rows_per_column`` is negative, or ``torch.inference_mode`` is on.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
        >>> from mmp.pruning.masks import make_masks
        >>> from mmp.pruning.signals import Magnitude, score
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> scores = score(Magnitude(), prunable_parameters(model, prunable_layers(model)), {})
        >>> masks = make_masks(scores, {"0.weight": 0.5, "2.weight": 0.5})
        >>> reports = reconstruct(model, masks, [torch.randn(256, 8)])
        >>> [(report.name, report.status, report.kept) for report in reports]
        [('0.weight', 'solved', 64), ('2.weight', 'solved', 32)]
        >>> all(report.after < report.before for report in reports)
        True
    """
    if rows_per_column < 0:
        raise MmpError(f"rows_per_column={rows_per_column}: must be at least 0, which takes all rows")
    images = _small([images_of(number, batch) for number, batch in enumerate(batches)])
    if torch.is_inference_mode_enabled():
        raise MmpError("reconstruction cannot work inside torch.inference_mode(); use torch.no_grad() there")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    masks.require_fit(parameters)
    if dense is None:
        with evaluating(model):
            dense = copy.deepcopy(model)
    placed = {name: mask.to(parameters[name].device) for name, mask in masks.items()}
    with evaluating(model, dense), torch.no_grad():
        for name, mask in placed.items():
            parameters[name].masked_fill_(~mask, 0.0)
        return _reconstruct(model, dense, placed, images, ridge, targets, rows_per_column)


def dense_targets(dense: nn.Module, names: Iterable[str], batches: Sequence[Tensor], most: float) -> dict[str, Tensor]:
    """Return the targets of every layer, from one forward pass of the dense network.

    They are the same for all masks, so the jobs of a sweep can share them.

    Args:
        dense: The dense network; its modes (training, eval) are restored.
        names: Names of the weights.
        batches: Images, (B, C, H, W) each, on the network's device.
        most: Number of bytes that the targets may need; at most a quarter of the device's memory.

    Returns:
        The products of a weight and its inputs, (groups, rows, outputs per group), under the key
        ``<weight>/<batch>/<call>``. Empty if they need more.

    Raises:
        MmpError: if there are no images.
    """
    found: dict[str, Tensor] = {}
    images = _small(batches)
    with evaluating(dense), torch.no_grad():
        walk = LayerWalk(dense, names, images)
        of_one_image = sum(rows.nbytes for rows in _products(walk, images[0][:1]).values())
        if of_one_image * sum(map(len, images)) > min(most, memory_of(images[0].device) // 4):
            return {}
        for number, batch in enumerate(images):
            found |= {f"{name}/{number}/{call}": rows for (name, call), rows in _products(walk, batch).items()}
    return found


def pop_targets(targets: dict[str, Tensor], name: str, batches: int) -> Iterator[list[Tensor]]:
    """Yield the targets of a layer, batch by batch, and remove them from the mapping to free their memory.

    Args:
        targets: The targets of :func:`dense_targets`.
        name: Name of the weight.
        batches: Number of batches.

    Yields:
        For each call of the layer, (groups, rows, outputs per group).

    Raises:
        MmpError: if there are no targets for the layer and batch.
    """
    for number in range(batches):
        calls = (targets.pop(f"{name}/{number}/{call}", None) for call in itertools.count())
        found = list(itertools.takewhile(lambda rows: rows is not None, calls))
        if not found:
            raise MmpError(f"targets lack {name!r} in batch {number}; make them with dense_targets for these images")
        yield found  # type: ignore[misc]


def images_of(number: int, batch: Any) -> Tensor:
    """Return the images of a batch."""
    images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(images, Tensor) or not images.dim():
        raise MmpError(
            f"batch {number} for reconstruction is a {type(batch).__name__} without images; it must be a tensor "
            "(B, C, H, W), or a pair that begins with one"
        )
    return images


def _small(batches: Iterable[Tensor]) -> list[Tensor]:
    """Return batches of at most `_BATCH` images, as the inputs of a layer are unfolded one batch at a time."""
    images = [part for batch in batches if len(batch) for part in batch.split(_BATCH)]
    if not images:
        raise MmpError(
            "reconstruction needs images, but there are none; pass a batch (in a run: raise data.calibration)"
        )
    return images


def _products(walk: LayerWalk, images: Tensor) -> dict[tuple[str, int], Tensor]:
    """Return the products of every weight and its inputs, by the weight's name and the number of the call."""
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
    rows_per_column: int,
) -> list[LayerReport]:
    stored = dict(targets or dense_targets(dense, masks, images, _MOST_STORED))
    walk, dense_walk = LayerWalk(model, masks, images), None if stored else LayerWalk(dense, masks, images)
    dense_weights = dict(dense.named_parameters(remove_duplicate=False))
    reports = []
    for name in (*walk.order, *(name for name in masks if name not in walk.order)):
        start = time.perf_counter()
        if name not in walk.order:
            outcome = _Outcome("its module is never called")
        elif reason := walk.unfit(name):
            outcome = _Outcome(reason)
        else:
            products = dense_walk.products(name) if dense_walk else pop_targets(stored, name, len(images))
            moments = SampledMoments.of(walk.inputs(name), products, [*map(len, images)], rows_per_column)
            outcome = _reconstruct_layer(name, walk, moments, masks[name], dense_weights[name], ridge)
        if outcome.status != _SOLVED:
            log.info("%s is masked but not re-solved: %s", name, outcome.status)
        kept, seconds = int(masks[name].count_nonzero()), time.perf_counter() - start
        reports.append(LayerReport(name, kept, outcome.before, outcome.after, outcome.status, seconds))
    return reports


@dataclass(frozen=True)
class _Outcome:
    """The result of one layer: its errors as in `LayerReport`, and ``solved`` or the reason why it stays as masked."""

    status: str
    before: float | None = None
    after: float | None = None


def _reconstruct_layer(
    name: str, walk: LayerWalk, moments: SampledMoments, mask: Tensor, dense: Tensor, ridge: float
) -> _Outcome:
    """Re-solve one layer in place, unless that would raise its error.

    Args:
        name: Name of the weight.
        walk: The walk through the pruned network.
        moments: The layer's moments.
        mask: The layer's mask.
        dense: The dense weight.
        ridge: As in :func:`reconstruct`.
    """
    weight, centred = walk.owner(name).weight, walk.takes_constant(name)
    assert isinstance(weight, Tensor)
    solving, unseen = moments.solving, moments.measured
    before = unseen.squared_error(moments.measured_of(weight))
    if not math.isfinite(before + (solving.squared_error(weight) if moments.few else 0.0)):
        return _Outcome("its inputs or targets are not finite")
    share = unseen.share(before)
    if mask.all() and before <= _NOTHING_LOST * (unseen.variance or float(unseen.y.square().sum())):
        return _Outcome(_SOLVED, share, share)
    solution = _best(moments, mask, dense, ridge, centred)
    if solution is None:
        return _Outcome("the system is singular", share, share)
    if not solution.error <= before * (_NO_WORSE if unseen is solving else _NO_WORSE_UNSEEN):  # true for NaN
        return _Outcome("the solve would make its output worse", share, share)
    weight.copy_(solution.weight)
    if solution.constant is not None:
        walk.add_constant(name, solution.constant)
    return _Outcome(_SOLVED, share, unseen.share(solution.error))


@dataclass(frozen=True)
class _Solution:
    """A layer's weight and the constant of its outputs, with the squared error on unseen rows."""

    weight: Tensor
    constant: Tensor | None
    error: float


def _best(moments: SampledMoments, mask: Tensor, dense: Tensor, ridge: float, centred: bool) -> _Solution | None:
    """Return the solution of a layer, None if its system is singular.

    If rows are few, the ridge is chosen by the error of some outputs on unseen rows, and everything is solved with it.
    That error is the solution's.
    """

    def solve(rows: Moments, unseen: Moments, factor: float, kept: Tensor, towards: Tensor) -> _Solution | None:
        solved = solve_rows(rows, kept, towards, factor * ridge, centred)
        if solved is None:
            return None
        constant = rows.best_constant(solved) if centred else None
        return _Solution(solved, constant, unseen.squared_error(solved, constant))

    solving, unseen = moments.solving, moments.unseen
    if not moments.few:
        return solve(solving, unseen, 1.0, mask, dense)
    some = solving.every(moments.step), moments.measured
    kept, towards = moments.measured_of(mask), moments.measured_of(dense)
    tried = {factor: solution for factor in _RIDGES if (solution := solve(*some, factor, kept, towards))}
    factor = min(tried, key=lambda factor: tried[factor].error, default=None)
    if factor is None:
        return None
    final = solve(solving.joined(unseen), unseen, factor, mask, dense)
    return replace(final, error=tried[factor].error) if final else None


def summary_of(reports: Sequence[LayerReport]) -> Mapping[str, Any]:
    """Return a reconstruction in one line.

    Args:
        reports: The report of every layer.

    Returns:
        The numbers of layers ``solved`` and ``left`` as masked; the mean errors of the solved layers, ``error_before``
        and ``error_after``, as in `LayerReport`, None if no layer has one; and ``seconds``.
    """
    solved = [report for report in reports if report.status == _SOLVED]
    return {
        "solved": len(solved),
        "left": len(reports) - len(solved),
        "error_before": _mean(report.before for report in solved),
        "error_after": _mean(report.after for report in solved),
        "seconds": sum(report.seconds for report in reports),
    }


def _mean(errors: Iterable[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return sum(known) / len(known) if known else None
