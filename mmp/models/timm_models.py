"""Models of timm: building them, and the input that they expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import nn

import mmp.models.vgg  # noqa: F401 - registers the paper's VGG-11 with timm
from mmp.config.schema import ModelConfig, TrainConfig
from mmp.errors import MmpError
from mmp.models.names import require_known
from mmp.models.pretrained_file import build_from_file

# Arguments of timm that load weights. Other keys of the configuration do this, and check the files that they read.
_LOADING = frozenset({"checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"})
_OF_CONFIG = frozenset({"num_classes", "in_chans"})
_WITHOUT_CLASSES = frozenset({"features_only", "out_indices", "feature_cls"})


def build_model(cfg: ModelConfig) -> nn.Module:
    """Create a timm model, with pretrained weights if the configuration asks for them.

    Raises:
        MmpError: if timm does not know the model (the message names the nearest), if the model does not accept an
            argument, if an argument would load a file, if pretrained weights are not available, or if a file holds the
            weights of another model.
    """
    require_known(cfg.name)
    _check_arguments(cfg.kwargs)
    options: dict[str, Any] = {"num_classes": cfg.num_classes, "in_chans": cfg.in_chans, **cfg.kwargs}
    if cfg.pretrained_file:
        with torch.random.fork_rng():  # so that both models are initialised with the same numbers
            untouched = build_bare(cfg)
        return build_from_file(cfg, options, untouched)
    try:
        return timm.create_model(cfg.name, pretrained=cfg.pretrained, **options)
    except Exception as error:  # a constructor or a download can raise any exception
        if cfg.pretrained:
            way_out = "without internet, set model.pretrained_file=<file>, or model.pretrained=false"
            raise MmpError(f"model.name={cfg.name} with pretrained weights: {error}; {way_out}") from error
        raise MmpError(
            f"model.name={cfg.name}: timm cannot build it with {cfg.kwargs} ({error}); correct model.kwargs"
        ) from error


def _check_arguments(kwargs: Mapping[str, Any]) -> None:
    for key, value in kwargs.items():
        if key in _LOADING:
            way_out = "set model.pretrained, model.pretrained_file or model.checkpoint instead"
            raise MmpError(f"model.kwargs.{key}: an argument of the model must not load weights; {way_out}")
        if key in _OF_CONFIG:
            raise MmpError(f"model.kwargs.{key}={value}: set model.{key} instead")
        if key in _WITHOUT_CLASSES and value:
            raise MmpError(
                f"model.kwargs.{key}={value}: the model would return feature maps, not class scores; remove the key"
            )


def build_bare(cfg: ModelConfig) -> nn.Module:
    """Create a timm model with random weights, which the caller overwrites.

    Raises:
        MmpError: if timm does not know the model, or the model does not accept an argument.
    """
    return build_model(replace(cfg, pretrained=False, pretrained_file=None))


def build_skeleton(cfg: ModelConfig) -> nn.Module:
    """Create a timm model on the ``meta`` device: its weights have names and shapes, but no memory.

    Raises:
        MmpError: if timm does not know the model, or the model does not accept an argument.
    """
    try:
        with torch.device("meta"):
            return build_bare(cfg)
    except MmpError:
        return build_bare(cfg)  # the constructor computes with values, or the configuration is wrong


def fill_input(config: TrainConfig) -> None:
    """Fill the data settings that are null with those that timm states for the model.

    These are the image size, mean, standard deviation, interpolation and crop.

    Args:
        config: A validated configuration; ``data`` is changed in place.

    Raises:
        MmpError: if timm states nothing for this model or for this number of channels, or if the model is built for
            another image size.
    """
    require_known(config.model.name)
    data, model = config.data, config.model
    stated = timm.get_pretrained_cfg(model.name)
    if stated is None and None in (data.image_size, data.mean, data.std):
        raise MmpError(
            f"model.name={model.name}: timm states no input size for it; set data.image_size, data.mean and data.std"
        )
    if stated is None:
        return
    for key in ("mean", "std"):
        value = getattr(stated, key)
        if getattr(data, key) is None and len(value) != data.channels:
            raise MmpError(
                f"data.{key}=null, but timm states {len(value)} channels for {model.name}, not {data.channels}; "
                f"set data.{key}"
            )
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
