"""Networks of timm and of the user: building them, and the input that they expect."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from mmp.config.schema import ModelConfig, TrainConfig
from mmp.config.source_code import module_of
from mmp.errors import MmpError
from mmp.models.names import require_known
from mmp.models.own_networks import build_own
from mmp.models.pretrained_file import start_from_file
from mmp.models.timm_models import StatedInput, build_timm, stated_by_timm


def build_model(cfg: ModelConfig) -> nn.Module:
    """Create a network, with pretrained weights if the configuration asks for them.

    Raises:
        MmpError: if there is no such model or class, if it does not accept an argument, if pretrained weights are not
            available, or if a file holds the weights of another network.
    """
    if not cfg._target_:
        return build_timm(cfg)
    network = build_own(cfg)
    return start_from_file(network, cfg) if cfg.pretrained_file else network


def build_bare(cfg: ModelConfig) -> nn.Module:
    """Create a network with random weights, which the caller overwrites.

    Raises:
        MmpError: if there is no such model or class, or it does not accept an argument.
    """
    return build_model(replace(cfg, pretrained=False, pretrained_file=None))


def build_skeleton(cfg: ModelConfig) -> nn.Module:
    """Create a network on the ``meta`` device: its weights have names and shapes, but no memory.

    Raises:
        MmpError: if there is no such model or class, or it does not accept an argument.
    """
    try:
        with torch.device("meta"):
            return build_bare(cfg)
    except MmpError:
        return build_bare(cfg)  # the constructor computes with values, or the configuration is wrong


def python_code(cfg: ModelConfig) -> tuple[str, str]:
    """Return Python code that creates a network: a line of imports, and an expression."""
    if cfg._target_:
        arguments = ", ".join(f"{key}={value!r}" for key, value in cfg.kwargs.items())
        return f"import {module_of(cfg._target_)}", f"{cfg._target_.replace(':', '.')}({arguments})"
    options = {"num_classes": cfg.num_classes, "in_chans": cfg.in_chans, **cfg.kwargs}
    arguments = ", ".join([repr(cfg.name), *(f"{key}={value!r}" for key, value in options.items())])
    registered = ", mmp.models.vgg  # registers the model" if cfg.name == "vgg11_bn_small" else ""
    return f"import timm{registered}", f"timm.create_model({arguments})"


def stated_input(cfg: ModelConfig) -> StatedInput:
    """Return the input that the configuration or timm states for a network. What neither states is None."""
    stated = StatedInput() if cfg._target_ else stated_by_timm(cfg.name)
    size = cfg.image_size if cfg._target_ else stated.image_size
    return replace(stated, image_size=size, mean=cfg.mean or stated.mean, std=cfg.std or stated.std)


def fill_input(config: TrainConfig) -> None:
    """Fill the data settings that are null with those that the configuration or timm states for the network.

    These are the image size, mean, standard deviation, interpolation and crop.

    Args:
        config: A validated configuration; ``data`` is changed in place.

    Raises:
        MmpError: if nothing is stated for this network or for this number of channels, if the model and the data state
            different values, or if the network is built for another image size.
    """
    data, model = config.data, config.model
    if not model._target_:
        require_known(model.name)
    stated = stated_input(model)
    for key in ("mean", "std"):
        own, theirs = getattr(model, key), getattr(data, key)
        if own and theirs and own != theirs:
            raise MmpError(
                f"data.{key}={theirs}, but model.{key}={own}; set data.{key}=null to normalise as in the training of "
                f"the model, or model.{key}=null"
            )
        value = getattr(stated, key)
        if theirs is None and value and len(value) != data.channels:
            raise MmpError(
                f"data.{key}=null, but timm states {len(value)} channels for {model.name}, not {data.channels}; "
                f"set data.{key}"
            )
    for key in ("image_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"):
        setattr(data, key, getattr(data, key) or getattr(stated, key))
    if missing := [key for key in ("image_size", "mean", "std") if getattr(data, key) is None]:
        raise MmpError(
            f"{model.setting}: no {' and no '.join(missing)} of its training is stated; set "
            f"{' and '.join(f'model.{key} or data.{key}' for key in missing)}"
        )
    built_for = model.kwargs.get("img_size") or stated.image_size
    if stated.fixed_size and built_for != data.image_size:
        raise MmpError(
            f"data.image_size={data.image_size}, but {model.name} is built for {built_for}; set data.image_size=null "
            f"to resize images, or +model.kwargs.img_size={data.image_size} if the model takes it"
        )
