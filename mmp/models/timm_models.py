"""Models: timm networks, their weights, and the images that they expect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import mmp.models.vgg  # noqa: F401 - registers the paper's VGG-11 with timm
from mmp.config.schema import ModelConfig, TrainConfig
from mmp.errors import MmpError, nearest
from mmp.models.weights import _odd_types, _read_state, require_finite
from mmp.pruning.layers.prunable import prunable_layers

# Arguments of timm that read files, or bring weights in: keys of their own do that here, and check what they read.
_LOADING = frozenset({"checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"})


def require_known(name: str) -> None:
    """Raise if timm has no model of this name.

    Raises:
        MmpError: with the nearest names.
    """
    if not timm.is_model(name):
        raise MmpError(f"model.name={name}: timm has no such model; {nearest(name, timm.list_models())}")


def build_model(cfg: ModelConfig) -> nn.Module:
    """Create a timm model, with pretrained weights if the configuration says so.

    Raises:
        MmpError: on a name that timm does not know (with the nearest), arguments that the model refuses or that would
            load a file, pretrained weights that cannot be had, or a file of weights that belongs to another model.
    """
    require_known(cfg.name)
    for key in cfg.kwargs:
        if key in _LOADING:
            way_out = "set model.pretrained, model.pretrained_file or model.checkpoint instead"
            raise MmpError(f"model.kwargs.{key}: models load no files by their arguments; {way_out}")
    options: dict[str, Any] = {"num_classes": cfg.num_classes, "in_chans": cfg.in_chans, **cfg.kwargs}
    if cfg.pretrained_file:
        return _build_from_file(cfg, options)
    try:
        return timm.create_model(cfg.name, pretrained=cfg.pretrained, **options)
    except Exception as error:  # whatever a constructor or a download raises
        if cfg.pretrained:
            way_out = "without a network, set model.pretrained_file=<file>, or model.pretrained=false"
            raise MmpError(f"model.name={cfg.name} with pretrained weights: {error}; {way_out}") from error
        raise MmpError(f"model.name={cfg.name}: timm cannot build it with {cfg.kwargs} ({error})") from error


def build_bare(cfg: ModelConfig) -> nn.Module:
    """Create a timm model whose weights are about to be overwritten: no pretrained ones are asked for.

    Raises:
        MmpError: on a name that timm does not know (with the nearest), or arguments that the model refuses.
    """
    return build_model(replace(cfg, pretrained=False, pretrained_file=None))


def build_skeleton(cfg: ModelConfig) -> nn.Module:
    """Create a timm model without memory for its weights, on the ``meta`` device; shapes and names are what counts.

    Raises:
        MmpError: on a name that timm does not know (with the nearest), or arguments that the model refuses.
    """
    try:
        with torch.device("meta"):
            return build_bare(cfg)
    except MmpError:
        return build_bare(cfg)  # a constructor that computes with values, or a real mistake


def _build_from_file(cfg: ModelConfig, options: dict[str, Any]) -> nn.Module:
    # timm renames keys of foreign files and drops a classifier of other classes, so it does the loading. It is
    # silent about a file of another model then; what such a file does not reach is as it was initialised.
    path = Path(str(cfg.pretrained_file))
    state = _read_state(path, "model.pretrained_file")
    with torch.random.fork_rng():  # so that the second model begins with the same numbers
        untouched = build_bare(cfg)
    try:
        overlay = {"state_dict": state}
        model = timm.create_model(cfg.name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:
        raise MmpError(f"{path}: not the weights of {cfg.name} ({str(error).splitlines()[0]})") from error
    before, after = untouched.state_dict(), model.state_dict()
    if problems := _odd_types(state, after):
        raise MmpError(f"{path}: not the weights of {cfg.name} ({problems[0]})")
    layers = [layer.name for layer in prunable_layers(model) if layer.role != "classifier"]
    missed = [name for name in layers if torch.equal(before[name], after[name])]
    if missed:
        raise MmpError(f"{path}: holds no weights for {len(missed)} layers of {cfg.name}, such as {missed[0]!r}")
    require_finite(model, str(path))
    return model


def fill_input(config: TrainConfig) -> None:
    """Fill what the data configuration leaves to the model: image size, normalisation, interpolation and crop.

    Args:
        config: A validated configuration; ``data`` is changed in place.

    Raises:
        MmpError: if timm states nothing for this model, or for another number of channels, or if the model is built
            for one size of images and the data have another.
    """
    require_known(config.model.name)
    data, model = config.data, config.model
    stated = timm.get_pretrained_cfg(model.name)
    if stated is None and None in (data.image_size, data.mean, data.std):
        raise MmpError(f"timm states no input for {model.name}; set data.image_size, data.mean and data.std")
    if stated is None:
        return
    for key in ("mean", "std"):
        value = getattr(stated, key)
        if getattr(data, key) is None and len(value) != data.channels:
            raise MmpError(f"data.{key}=null, but timm states {len(value)} channels, not {data.channels}; set it")
    size = stated.input_size[-1]
    data.image_size = data.image_size or size
    data.mean, data.std = list(data.mean or stated.mean), list(data.std or stated.std)
    data.interpolation = data.interpolation or stated.interpolation
    data.crop_pct, data.crop_mode = data.crop_pct or stated.crop_pct, data.crop_mode or stated.crop_mode
    built_for = model.kwargs.get("img_size") or size
    if stated.fixed_input_size and built_for != data.image_size:
        raise MmpError(
            f"data.image_size={data.image_size}, but {model.name} is built for {built_for}; set data.image_size=null "
            f"to resize images, or +model.kwargs.img_size={data.image_size} if the model takes it"
        )
