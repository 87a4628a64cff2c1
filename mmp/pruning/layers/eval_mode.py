"""Eval mode for a while: a model is left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into eval mode for a ``with`` block; every module's mode is restored."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        forget_cached(model)
        model.eval()
    try:
        yield
    finally:
        for model in models:
            forget_cached(model)
        for module, training in modes:
            module.training = training


def forget_cached(model: nn.Module) -> None:
    """Make a model forget what it computed from its weights in eval mode; it is in training mode afterwards.

    LeViT and its kin (timm) keep their attention biases from the first evaluation until ``train`` is called. Copying
    the flag ``training`` alone, as Lightning does after validation, leaves biases of old weights behind.
    """
    model.train()
