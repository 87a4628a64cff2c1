"""Checks of a model that a user passes in Python."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from mmp.errors import MmpError
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.prunable import find_layers
from mmp.tensors import all_finite


def checked_layers(model: Any, runs: bool = False) -> tuple[Layer, ...]:
    """Return the prunable layers of a model, after a check that it can be copied, scored and re-solved.

    Args:
        model: The model.
        runs: Whether the model will run on images.

    Raises:
        MmpError: if it is no module, has no prunable layer, is compiled, scripted or replicated, or has values that are
            missing or not finite.
    """
    if not isinstance(model, nn.Module):
        raise MmpError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    require_plain(model)
    layers = find_layers(model)
    for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
        if value.is_meta:
            raise MmpError(f"model: {name!r} is on the meta device and has no values; load the trained weights first")
        if runs and value.is_inference() and not torch.is_inference_mode_enabled():
            raise MmpError(
                f"model: {name!r} was made under torch.inference_mode(); make or load the model outside of it"
            )
        if value.is_floating_point() and not all_finite(value.detach()):
            raise MmpError(f"model: {name!r} holds NaN or infinity; the checkpoint is damaged or training diverged")
    return layers


def require_plain(model: nn.Module) -> None:
    """Raise if a module of a model is compiled, scripted or replicated: hooks would not see its calls.

    Raises:
        MmpError: with the name of the module.
    """
    for name, module in model.named_modules():
        _require_plain(f"model.{name}" if name else "model", module)


def _require_plain(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise MmpError(f"{name} is a {type(module).__name__}; pass the module inside it ({name}.module)")
    if isinstance(module, torch.jit.ScriptModule):
        raise MmpError(f"{name} is a script of TorchScript; pass the module that it was made from")
    if "_orig_mod" in module._modules:
        raise MmpError(f"{name} is compiled; pass the module inside it ({name}._orig_mod), and compile the result")
    if module._compiled_call_impl is not None:
        raise MmpError(f"{name} is compiled in place; prune the model first, then call compile() on the result")
