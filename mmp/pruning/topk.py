"""Which weights of a layer stay: exactly so many, by score, weight by weight or in patterns (phase 3 of the method)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmp.errors import MmpError
from mmp.pruning.patterns import Pattern
from mmp.tensors import all_finite

_FEW = 2**12  # scores of which a whole sort costs less than a histogram


def pruned_count(sparsity: float, total: int) -> int:
    """Return floor(sparsity * total), the exact number of weights that a layer loses.

    Raises:
        MmpError: if the sparsity is outside [0, 1].
    """
    if not 0.0 <= sparsity <= 1.0:
        raise MmpError(f"sparsity {sparsity} is outside [0, 1]")
    return math.floor(sparsity * total)


def keep_highest(scores: Tensor, pruned: int) -> Tensor:
    """Return a bool mask that drops exactly the ``pruned`` lowest scores.

    Equal scores are ordered by flat index, the lower index goes first, so the mask depends on nothing else.

    Args:
        scores: Tensor of any shape, finite.
        pruned: How many to drop, from 0 to ``scores.numel()``.

    Raises:
        MmpError: if a score is not finite, or the number is out of bounds.
    """
    return keep_highest_each(scores, [pruned])[0]


def keep_highest_each(scores: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return, for each of several numbers, the mask of :func:`keep_highest`, from one look at the scores.

    The masks may share one block of memory, which is free when all of them are.

    Args:
        scores: Tensor of any shape, finite.
        counts: How many to drop, each from 0 to ``scores.numel()``.

    Raises:
        MmpError: if a score is not finite, or a number is out of bounds.
    """
    flat = scores.detach().flatten()
    for count in counts:
        if not 0 <= count <= flat.numel():
            raise MmpError(f"cannot prune {count} of {flat.numel()} weights")
    _require_finite(flat)
    if flat.numel() > _FEW and flat.dtype is torch.float32 and flat.device.type == "cpu":
        masks = _by_leading_bits(flat.numpy(), counts)
    else:
        order = flat.argsort(stable=True)
        masks = [torch.ones_like(flat, dtype=torch.bool).index_fill_(0, order[:count], False) for count in counts]
    return [mask.view(scores.shape) for mask in masks]


def _by_leading_bits(scores: np.ndarray, counts: Sequence[int]) -> list[Tensor]:
    """Cut float32 scores at several ranks, and sort only those that share their leading sixteen bits with a cut."""
    keys = scores.view(np.int32)
    if keys.min() < 0:  # bits of negative numbers fall as the numbers rise; adding 0 makes -0.0 equal to 0.0
        keys = (scores + np.float32(0)).view(np.int32)
        keys = keys ^ ((keys >> 31) & 0x7FFFFFFF)
    bins = keys >> 16
    bins += 0x8000
    ends = torch.bincount(torch.from_numpy(bins), minlength=0x10000).cumsum(0).numpy()
    leading, cuts = bins.astype(np.uint16), np.searchsorted(ends, counts).astype(np.uint16)
    near = np.zeros(len(scores), dtype=bool)
    for cut in set(cuts):
        near |= leading == cut
    places = np.flatnonzero(near)
    rest = keys[places].astype(np.uint16)  # the other sixteen bits
    places = places[np.argsort(rest, kind="stable")]
    shared = leading[places]
    masks = np.empty((len(counts), len(scores)), dtype=bool)  # one block, which the system backs with large pages
    for keep, count, cut in zip(masks, counts, cuts, strict=True):
        np.greater(leading, cut, out=keep)
        ascending = places[shared == cut]
        keep[ascending[count - int(ends[cut]) + len(ascending) :]] = True
    return list(torch.from_numpy(masks))


def _require_finite(scores: Tensor) -> None:
    if not all_finite(scores):
        raise MmpError("scores hold NaN or infinity; check the weights and the calibration data")


def keep_patterned(scores: Tensor, pruned: int, pattern: Pattern) -> Tensor:
    """Return a bool mask that drops the lowest scores so that a pattern holds, or comes to hold as more are dropped.

    Blocks are ordered by the sum of their scores. First go those that the pattern takes whatever the sparsity: of
    every M neighbours the M - N lowest; then all others. So masks for rising numbers contain each other, and once the
    pattern holds, no mask that satisfies it and prunes as many keeps higher scores. Equal sums go by flat index.

    Args:
        scores: (outputs, inputs, kernel...), finite, of a shape that the pattern fits.
        pruned: How many weights to drop; rounded down to whole blocks.
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
    """Return whether a mask (outputs, inputs, kernel...) has a pattern; one that the pattern does not fit has not."""
    if not pattern.fits(mask.shape, groups):
        return False
    parts = _parts(mask, pattern)
    blocks = parts.all(4).all(1)
    return torch.equal(blocks, parts.any(4).any(1)) and bool((blocks.sum(2) <= pattern.kept).all())


def _parts(values: Tensor, pattern: Pattern) -> Tensor:
    """View a layer as (outputs / R, R, groups, M, C, kernel...): M neighbouring blocks of R outputs by C inputs."""
    outputs, inputs, *kernel = values.shape
    groups = inputs // (pattern.of * pattern.columns)
    return values.reshape(outputs // pattern.rows, pattern.rows, groups, pattern.of, pattern.columns, *kernel)
