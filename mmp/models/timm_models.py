"""Models of timm, and the input that timm states for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from torch import nn

import mmp.models.vgg  # noqa: F401 - registers the paper's VGG-11 with timm
from mmp.config.schema import ModelConfig
from mmp.errors import MmpError
from mmp.models.names import require_known
from mmp.models.pretrained_file import build_from_file

# Arguments of timm that load weights. Other keys of the configuration do this, and check the files that they read.
_LOADING = frozenset({"checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"})
_OF_CONFIG = frozenset({"num_classes", "in_chans"})
_WITHOUT_CLASSES = frozenset({"features_only", "out_indices", "feature_cls"})


def build_timm(cfg: ModelConfig) -> nn.Module:
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
            untouched = build_timm(replace(cfg, pretrained=False, pretrained_file=None))
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


@dataclass(frozen=True)
class StatedInput:
    """The input for which a network was trained; None where nothing is stated.

    Attributes:
        image_size: Height and width in pixels.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        interpolation: Interpolation of the resizing, by timm's name.
        crop_pct: Fraction of the resized image that the centre crop keeps.
        crop_mode: How images that are not square are cropped, by timm's name.
        fixed_size: Whether the network reads images of this size only.
    """

    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    fixed_size: bool = False


def stated_by_timm(name: str) -> StatedInput:
    """Return the input that timm states for a model."""
    stated = timm.get_pretrained_cfg(name)
    if stated is None:
        return StatedInput()
    return StatedInput(
        stated.input_size[-1],
        list(stated.mean),
        list(stated.std),
        stated.interpolation,
        stated.crop_pct,
        stated.crop_mode,
        stated.fixed_input_size,
    )
