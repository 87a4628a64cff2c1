"""Full float32 in products and convolutions, for comparisons in which only rounding may differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute products and convolutions of float32 tensors without TF32 and bfloat16, for a ``with`` block.

    cuDNN computes convolutions in TF32 by default, and ``torch.set_float32_matmul_precision`` allows fewer bits in
    products. Two orders of the same sums then differ by about 1e-3 of their value. The settings are global, and are
    restored afterwards.
    """
    settings = _settings()
    before = [read() for read, _, _ in settings]
    for _, write, full in settings:
        write(full)
    try:
        yield
    finally:
        for (_, write, _), value in zip(settings, before, strict=True):
            write(value)


def _settings() -> list[tuple[Callable[[], Any], Callable[[Any], object], Any]]:
    """Return how to read and how to write each setting of precision, and its value for full float32."""
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        return [
            (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
            _attribute(backends.cudnn, "allow_tf32", False),
        ]
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    places = (backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    return [_attribute(place, "fp32_precision", "ieee") for place in places]


def _attribute(place: Any, name: str, full: Any) -> tuple[Callable[[], Any], Callable[[Any], object], Any]:
    return partial(getattr, place, name), partial(setattr, place, name), full
