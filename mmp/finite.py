"""Whether numbers are all finite."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or infinity, from their extremes: one look, and no second tensor.

    Args:
        values: Floating-point tensor of any shape, empty ones included.
    """
    return not values.numel() or all(map(torch.isfinite, torch.aminmax(values)))
