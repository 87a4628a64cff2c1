"""Gradients that have the same bits in every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Compute convolutions and attention by kernels that repeat their bits, for a ``with`` block.

    By default, cuDNN may choose gradients of convolutions that add in any order, and so does fused attention on a GPU.
    The settings are global, and are restored afterwards.

    Args:
        device: The device of the network. On the CPU, fused attention repeats its bits, too.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with nullcontext() if device.type == "cpu" else sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
