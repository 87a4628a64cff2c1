"""Full float32 in products and convolutions, for comparisons in which only rounding may differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_Setting = tuple[Callable[[], Any], Callable[[Any], object], Any]


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


def _settings() -> list[_Setting]:
    """Return how to read and how to write each setting of precision, and its value for full float32.

    torch 2.9 has settings of a newer kind as well. It refuses to read the older ones once the newer ones contradict
    them, so the older ones are written unless the user has written newer ones: a network may read them.
    """
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    older: list[_Setting] = [
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        _attribute(cudnn, "allow_tf32", False),
    ]
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return older
    without_older = [_attribute(place, "fp32_precision", "ieee") for place in (mkldnn.conv, mkldnn.rnn)]
    if _uses_newer(older):
        places = (backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul)
        return [*(_attribute(place, "fp32_precision", "ieee") for place in places), *without_older]
    return [*older, *without_older]


def _uses_newer(older: list[_Setting]) -> bool:
    """Return whether the user has written settings of the newer kind, which older ones would inherit or contradict."""
    backends: Any = torch.backends
    if {backends.fp32_precision, backends.cudnn.fp32_precision} != {"none"}:
        return True
    try:
        for read, _, _ in older:
            read()
    except RuntimeError:
        return True
    return False


def _attribute(place: Any, name: str, full: Any) -> _Setting:
    return partial(getattr, place, name), partial(setattr, place, name), full
