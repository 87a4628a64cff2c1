"""Whole numbers of weights from shares of them, as decimal arithmetic gives them (docs/method.md, phase 3)."""

from __future__ import annotations

import math

from mmp.errors import MmpError

_ROUNDING = 2.0**-48  # the error that several floating-point operations leave in a number near 1


def pruned_count(sparsity: float, total: int) -> int:
    """Return floor(sparsity * total), the number of weights that a layer of ``total`` weights loses.

    See :func:`floor_product` for the rounding.

    Raises:
        MmpError: if the sparsity is outside [0, 1].

    Example:
        >>> pruned_count(0.29, 100)
        29
    """
    if not 0.0 <= sparsity <= 1.0:
        raise MmpError(f"sparsity {sparsity} is outside [0, 1]; a sparsity is a fraction of the weights")
    return floor_product(sparsity, total)


def floor_product(share: float, total: int) -> int:
    """Return floor(share * total) as decimal arithmetic gives it.

    In floating point, 0.29 * 100 is 28.999999999999996, and a share that was computed, such as 1 - 0.9, is slightly
    less than the decimal number that it stands for. A product that is below a whole number by no more than such an
    error counts as that number. The result never decreases when the share rises.

    Args:
        share: A number, at least 0.
        total: A whole number, at least 0.

    Example:
        >>> floor_product(1 - 0.9, 10)
        1
    """
    return math.floor((share + _ROUNDING * max(share, 1.0)) * total)


def sparsity_of(pruned: int, total: int) -> float:
    """Return a sparsity at which a layer loses ``pruned`` weights, by :func:`pruned_count` and by the plain product.

    Args:
        pruned: Number of pruned weights.
        total: Number of weights.
    """
    share = pruned / total
    return share if math.floor(share * total) == pruned else math.nextafter(share, 1.0)
