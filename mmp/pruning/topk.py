"""Top-k selection: keep an exact number of highest-scored weights, singly or in patterns (docs/method.md, phase 3)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from mmp.errors import MmpError
from mmp.pruning.patterns import Pattern, WeightShape
from mmp.tensors import all_finite

_FEW = 2**12  # up to this number of scores, sorting them costs less than a histogram
_BLOCK = 2**17  # scores that are compared with all cuts before the next ones, while they are in the processor's cache
_NOT_FINITE = "scores hold NaN or infinity; check the weights and the calibration data"


def keep_highest(scores: Tensor, pruned: int) -> Tensor:
    """Return a mask that prunes exactly the ``pruned`` lowest scores, a bool tensor of their shape.

    Of equal scores, those with lower flat indices are pruned first, so the mask is deterministic.

    Args:
        scores: Finite tensor of any shape.
        pruned: Number of scores to prune, from 0 to ``scores.numel()``.

    Raises:
        MmpError: if a score is not finite, or the number is out of bounds.
    """
    return keep_highest_each(scores, [pruned])[0]


def keep_highest_each(scores: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return one mask for each of several numbers: as :func:`keep_highest`, but the scores are read only once.

    The masks may share one block of memory, which is freed with the last of them.

    Args:
        scores: Finite tensor of any shape.
        counts: Numbers of scores to prune, each from 0 to ``scores.numel()``.

    Raises:
        MmpError: if a score is not finite, or a number is out of bounds.
    """
    flat = scores.detach().flatten()
    for count in counts:
        if not 0 <= count <= flat.numel():
            raise MmpError(f"cannot prune {count} of {flat.numel()} weights; the number must be from 0 to all of them")
    if flat.numel() > _FEW and flat.dtype is torch.float32 and flat.device.type == "cpu":
        masks = _by_leading_bits(flat.numpy(), counts)
    else:
        _require_finite(flat)
        order = flat.argsort(stable=True)
        masks = [torch.ones_like(flat, dtype=torch.bool).index_fill_(0, order[:count], False) for count in counts]
    return [mask.view(scores.shape) for mask in masks]


def _by_leading_bits(scores: np.ndarray, counts: Sequence[int]) -> list[Tensor]:
    """Cut float32 scores at several ranks; only scores that share their leading sixteen bits with a cut are sorted."""
    keys = scores.view(np.uint32)
    leading, ends = _leading_bits(keys)
    finite = ends[0x7F7F] == len(scores)  # the next bins are those of infinity and NaN
    if ends[0x7FFF] < len(scores):  # and those behind them are those of negative numbers
        keys = (scores + np.float32(0)).view(np.uint32)  # adding 0 turns -0.0 into 0.0
        keys = keys ^ np.where(keys >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))  # in the order of the numbers
        leading, ends = _leading_bits(keys)
        finite = not ends[0x7F] and ends[0xFF7F] == len(scores)
    if not finite:
        raise MmpError(_NOT_FINITE)
    cuts = np.searchsorted(ends, counts).astype(np.uint16)
    places = _places(leading, set(cuts))
    trailing, shared = keys[places].astype(np.uint16), leading[places]
    order = np.lexsort((trailing, shared))
    places, shared = places[order], shared[order]
    masks = np.empty((len(counts), len(scores)), dtype=bool)  # one block, for which the system uses large pages
    for keep, count, cut in zip(masks, counts, cuts, strict=True):
        np.greater(leading, cut, out=keep)
        end = int(np.searchsorted(shared, cut, side="right"))
        keep[places[end - int(ends[cut] - count) : end]] = True
    return list(torch.from_numpy(masks))


def _leading_bits(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the leading sixteen bits of each key, and how many keys have at most each value of them."""
    bins = keys >> 16
    ends = torch.bincount(torch.from_numpy(bins.view(np.int32)), minlength=0x10000).cumsum(0).numpy()
    return bins.astype(np.uint16), ends


def _places(values: np.ndarray, wanted: Collection[np.uint16]) -> np.ndarray:
    """Return the indices of the values that are among the wanted ones."""
    found = []
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        among = np.zeros(len(block), dtype=bool)
        for value in wanted:
            among |= block == value
        found.append(np.flatnonzero(among) + start)
    return np.concatenate(found)


def _require_finite(scores: Tensor) -> None:
    if not all_finite(scores):
        raise MmpError(_NOT_FINITE)


def keep_patterned(scores: Tensor, pruned: int, pattern: Pattern) -> Tensor:
    """Return a mask that prunes the lowest scores in an order that leads to a pattern, a bool tensor of their shape.

    Blocks are ordered by the sum of their scores; of equal sums, lower flat indices are pruned first. The M - N lowest
    of every M neighbouring blocks are pruned before all others, because the pattern needs them pruned at any sparsity.
    Masks for ascending numbers therefore contain each other. Once the pattern holds, no other mask with the pattern and
    the same number of pruned weights keeps a higher sum of scores.

    Args:
        scores: Finite tensor (outputs, inputs, kernel...) of a shape that the pattern fits.
        pruned: Number of weights to prune; rounded down to whole blocks.
        pattern: The pattern.

    Raises:
        MmpError: if a score is not finite, or the number is out of bounds.
    """
    _require_finite(scores)
    parts = _parts(scores.detach(), pattern)
    blocks = parts.sum((1, 4), dtype=torch.float64)
    lowest = blocks.argsort(dim=2, stable=True)[:, :, : max(0, pattern.of - pattern.kept)]
    first = torch.zeros_like(blocks, dtype=torch.bool).scatter_(2, lowest, True)
    count, most = pruned // pattern.unit, int(first.count_nonzero())
    keep = torch.ones_like(first)
    keep[first] = keep_highest(blocks[first], min(count, most))
    keep[~first] = keep_highest(blocks[~first], max(0, count - most))
    return keep[:, None, :, :, None].expand_as(parts).reshape(scores.shape)


def satisfies(mask: Tensor, pattern: Pattern, groups: int = 1) -> bool:
    """Return whether a mask satisfies a pattern; False if the pattern does not fit its shape.

    Args:
        mask: Bool tensor (outputs, inputs per group, kernel...).
        pattern: The pattern.
        groups: Groups of the convolution.
    """
    if not pattern.fits(WeightShape(mask.shape, groups)):
        return False
    parts = _parts(mask, pattern)
    blocks = parts.all(4).all(1)
    return torch.equal(blocks, parts.any(4).any(1)) and bool((blocks.sum(2) <= pattern.kept).all())


def _parts(values: Tensor, pattern: Pattern) -> Tensor:
    """View a layer as (outputs / R, R, groups, M, C, kernel...): M neighbouring blocks of R outputs by C inputs."""
    outputs, inputs, *kernel = values.shape
    groups = inputs // (pattern.of * pattern.columns)
    return values.reshape(outputs // pattern.rows, pattern.rows, groups, pattern.of, pattern.columns, *kernel)
