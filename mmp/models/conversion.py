"""timm's own conversion of a checkpoint to its current names and to another number of classes or channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mmp.pruning.layers.prunable import find_layers

_OF_TABLES = (torch.int64, torch.bool)  # of buffers, such as counters, indices and masks
_DEFAULT_SIZE = (3, 224, 224)  # of timm's descriptions


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the tensors of a model's last layers, as timm states them, or as their roles say."""
    if getattr(model, "pretrained_cfg", None):
        return _tensors_of(model, "classifier")
    last = [layer.module for layer in find_layers(model) if layer.role == "classifier"][-1:]
    return [name for name in model.state_dict() if name.rpartition(".")[0] in last]


def stem_names(model: nn.Module) -> list[str]:
    """Return the names of the weights of a timm model's first layers, as timm states them."""
    return [name for name in _tensors_of(model, "first_conv") if name.endswith(".weight")]


def _tensors_of(model: nn.Module, key: str) -> list[str]:
    paths = (getattr(model, "pretrained_cfg", None) or {}).get(key) or ()
    paths = (paths,) if isinstance(paths, str) else paths
    return [name for name in model.state_dict() if name.rpartition(".")[0] in paths]


def channels_of(model: Any, tensors: Mapping[str, Tensor]) -> int:
    """Return the number of image channels of the first layer in a file, or the model's own if it is not there."""
    channels, own = _channels(model), model.state_dict()
    shapes = ((tensors[name].shape, own[name].shape) for name in stem_names(model) if name in tensors)
    return next((channels * theirs[1] // ours[1] for theirs, ours in shapes), channels)


def _channels(model: Any) -> int:
    size = model.pretrained_cfg.get("input_size") or _DEFAULT_SIZE
    return getattr(model, "_model_args", {}).get("in_chans") or size[0]


def overlay_for(
    model: Any, tensors: Mapping[str, Tensor], channels: int | None = None, keep_head: bool = True
) -> dict[str, Any]:
    """Return the changes of timm's description of a file that make timm load these tensors into a model.

    Without them, timm takes every file for its own ImageNet weights: it drops a last layer unless the model has 1000
    classes, and expects a first layer of three channels.

    Args:
        model: A model that timm created.
        tensors: The tensors of the file.
        channels: The number of image channels in the file; null is the model's own.
        keep_head: Whether the last layer is loaded.
    """
    size = model.pretrained_cfg.get("input_size") or _DEFAULT_SIZE
    return {
        "state_dict": dict(tensors),
        "num_classes": model.num_classes if keep_head else -1,  # of another number, timm drops the last layer
        "label_offset": 0,
        "input_size": (channels or _channels(model), *size[1:]),
    }


def converted_by_timm(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the tensors of a checkpoint under timm's current names, or None if timm does not convert all of them.

    timm renamed layers of several architectures, and it reads the files of their authors. A prefix that all names
    share is removed if timm does not know it. No tensor is resized: a checkpoint for another image size, another number
    of channels or of classes is another model. Nor is it converted to another kind of numbers: integers are no weights
    without the scales by which they were quantised.

    Args:
        model: A model that timm created.
        tensors: The tensors of the checkpoint.
    """
    if any(not value.is_floating_point() and value.dtype not in _OF_TABLES for value in tensors.values()):
        return None
    stated, arguments = getattr(model, "pretrained_cfg", None), getattr(model, "_model_args", None)
    if not stated or arguments is None:
        return None
    first = {name.partition(".")[0] for name in tensors}
    attempts = [dict(tensors)]
    if len(first) == 1:
        attempts.append({name.partition(".")[2]: value for name, value in tensors.items()})
    own = model.state_dict()
    for attempt in attempts:
        pairs = [(own[name], value) for name, value in attempt.items() if name in own]
        if any(
            ours.numel() != theirs.numel() or ours.is_floating_point() != theirs.is_floating_point()
            for ours, theirs in pairs
        ):
            continue
        options = {"pretrained": True, "pretrained_cfg_overlay": overlay_for(model, attempt), **arguments}
        try:
            with torch.random.fork_rng():
                return timm.create_model(stated["architecture"], **options).state_dict()
        except Exception:  # noqa: S112  # timm's conversions raise any exception for the file of another model
            continue
    return None
