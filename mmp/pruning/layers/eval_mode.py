"""Eval mode, and gradients in it, for the duration of a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into eval mode for a ``with`` block, and restore every module's mode afterwards."""
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


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Compute recurrent layers without cuDNN in a ``with`` block: it has no gradients for them in eval mode."""
    enabled = torch.backends.cudnn.enabled
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    torch.backends.cudnn.enabled = enabled and not recurrent
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled


def forget_cached(model: nn.Module) -> None:
    """Put a model into training mode, so that it drops tensors that it computed from its weights in eval mode.

    LeViT and similar models of timm cache their attention biases from the first evaluation until ``train`` is called.
    Setting the flag ``training`` alone, as Lightning does after validation, keeps the biases of old weights.

    Weights that a hook computes before each forward pass, as torch's own pruning does, are detached: a model that holds
    a tensor with a graph cannot be copied.
    """
    model.train()
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = value.detach()
