"""Convolutions that give the same bits in every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable() -> Iterator[None]:
    """Let cuDNN take algorithms that always give the same bits, and choose them without timing, for a ``with`` block.

    By default it may take gradients of convolutions that add in any order. The settings are global, and are restored
    afterwards.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
