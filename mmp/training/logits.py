"""The check that a model turns the images of a job into logits, within the memory of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmp.config.schema import ModelConfig, TrainConfig
from mmp.errors import MmpError, one_line
from mmp.models.networks import build_bare, build_skeleton, stated_input
from mmp.tensors import memory_of
from mmp.training.evaluation import device_of

_SIZES = (*range(8, 129, 8), *range(160, 513, 32))  # image sizes to try where a model cannot read one
_NOISE = 1e-3  # of the largest logit: two passes that differ by less differ by rounding only
_COPIES = 4  # of the weights in a training: weights, gradients, and two moments of an optimizer such as Adam


def require_logits(config: TrainConfig) -> None:
    """Check that the model maps images (B, C, H, W) to floating-point logits (B, classes), always to the same ones.

    Args:
        config: The configuration, validated and complete.

    Raises:
        MmpError: if the model needs more memory than the machine has, cannot read images of this size (the message
            names one that works), returns anything else (the message names the argument that is the reason), or
            returns other logits when it reads the same images again.
    """
    _require_memory(config)
    device = device_of(config)
    try:
        model = build_bare(config.model).to(device)
        wrong = _difference(config, model, device)
    except MmpError:
        raise
    except Exception as error:  # a model can raise any exception
        raise _unreadable(config, one_line(error)) from error
    if wrong:
        raise MmpError(_wrong_output(config, wrong))
    images = torch.randn(_images(config, "meta").shape, device=device)
    if reason := _unusable(config, model, images):
        raise MmpError(f"{config.model.setting}: {reason}")


def _unusable(config: TrainConfig, model: nn.Module, images: Tensor) -> str | None:
    """Return why the logits of a model cannot be used, or None: they depend on chance, or on the size of the batch."""
    expected = (1, config.data.classes)
    with torch.no_grad():
        logits, again = model(images), model(images)
        try:  # the last batch of a data set may have one image
            alone = tuple(model(images[:1]).shape)
        except Exception as error:  # a model can raise any exception
            return f"fails on a batch of one image ({one_line(error)}); let it read batches of any size"
    if alone != expected:
        return (
            f"returns a tensor of shape {alone} in place of {expected} for one image; keep the dimension of the batch"
        )
    if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0])):
        return "returns probabilities, which sum to 1; return the logits, without softmax"
    if not torch.allclose(logits, again, rtol=0, atol=_NOISE * float(logits.abs().max()), equal_nan=True):
        return (
            "two passes over the same images give different logits in evaluation mode; let dropout depend on training"
        )
    return None


def _difference(config: TrainConfig, model: nn.Module, device: torch.device | str) -> str | None:
    """Return what a model returns in place of logits, None if it returns logits."""
    with torch.no_grad():
        logits = model.eval()(_images(config, device))
    if not isinstance(logits, Tensor):
        return f"a {type(logits).__name__}"
    if tuple(logits.shape) != (2, config.data.classes):
        return f"a tensor of shape {tuple(logits.shape)}"
    return None if logits.is_floating_point() else f"a tensor of {logits.dtype}"


def _images(config: TrainConfig, device: torch.device | str) -> Tensor:
    size = config.data.image_size or 1
    return torch.zeros(2, config.data.channels, size, size, device=device)


def _unreadable(config: TrainConfig, reason: str) -> MmpError:
    """Return the error about a model that fails on an image, with an image size or an argument that works."""
    name, size = config.model.title, config.data.image_size
    for argument, model in _without_one_argument(config.model):
        if _works_on_meta(replace(config, model=model)):
            setting = f"model.kwargs.{argument}={config.model.kwargs[argument]}"
            return MmpError(f"{setting}: {name} fails with it ({reason}); leave it out")
    for other in _SIZES:
        if other > (size or 0) and _works_on_meta(_at_size(config, other)):
            return MmpError(
                f"data.image_size={size}: {name} cannot read images of this size ({reason}); "
                f"set data.image_size={other}"
            )
    stated, channels = stated_input(config.model).image_size, config.data.channels
    hint = f"; images of {stated} pixels are stated for it" if stated else ""
    return MmpError(
        f"data.image_size={size}: {name} fails on images of {channels} channels and this size ({reason}); change "
        f"data.image_size, {config.model.setting.partition('=')[0]} or model.kwargs{hint}"
    )


def _wrong_output(config: TrainConfig, found: str) -> str:
    name, kwargs, classes = config.model.title, config.model.kwargs, config.data.classes
    expected = f"returns {found} for 2 images, in place of logits (2, {classes})"
    for argument, model in _without_one_argument(config.model):
        if _works_on_meta(replace(config, model=model)):
            return f"model.kwargs.{argument}={kwargs[argument]}: {name} {expected}; leave it out"
    if config.model._target_:
        way_out = f"return logits alone, and as many as there are classes, as with +model.kwargs.num_classes={classes}"
        return f"{config.model.setting}: with model.kwargs={kwargs}, it {expected}; {way_out}"
    return f"model.name={name}: the model, with model.kwargs={kwargs}, {expected}; choose another model or other kwargs"


def _without_one_argument(model: ModelConfig) -> Iterator[tuple[str, ModelConfig]]:
    for argument in model.kwargs:
        kept = {key: value for key, value in model.kwargs.items() if key != argument}
        yield argument, replace(model, kwargs=kept)


def _at_size(config: TrainConfig, size: int) -> TrainConfig:
    """Return a configuration for another image size; an argument ``img_size`` of the model follows."""
    kwargs = dict(config.model.kwargs)
    if kwargs.get("img_size") == config.data.image_size:
        kwargs["img_size"] = size
    model = replace(config.model, kwargs=kwargs)
    return replace(config, data=replace(config.data, image_size=size), model=model)


def _works_on_meta(config: TrainConfig) -> bool:
    try:
        return _difference(config, build_skeleton(config.model).to("meta"), "meta") is None
    except Exception:  # a model can raise any exception
        return False


def _require_memory(config: TrainConfig) -> None:
    """Raise if the weights, or what the model computes for two images, are larger than the memory of the machine."""
    memory, data = _memory(config), config.data
    pixels = 2 * data.channels * (data.image_size or 1) ** 2
    needed = 16 * pixels  # an input and one feature map of its size, with gradients, as float32
    if needed > memory:
        raise MmpError(f"data.image_size={data.image_size}: {_needs(needed, memory)}; lower it")
    skeleton = build_skeleton(config.model)
    weights = _COPIES * sum(p.numel() * p.element_size() for p in skeleton.parameters())
    if weights > memory:
        raise MmpError(
            f"{config.model.setting}: with {data.classes} classes and model.kwargs={config.model.kwargs}, its "
            f"training {_needs(weights, memory)}; choose a smaller model or fewer classes"
        )
    needed = _size_of_outputs(skeleton.to("meta"), config)
    if needed > memory:
        raise MmpError(f"data.image_size={data.image_size}: {_needs(needed, memory)}; lower it")


def _needs(needed: float, memory: float) -> str:
    return f"needs {needed / 1e9:.4g} GB even for two images, and the device has {memory / 1e9:.4g}"


def _memory(config: TrainConfig) -> int:
    """Return the memory of the job's device in bytes."""
    return memory_of(device_of(config))


def _size_of_outputs(skeleton: nn.Module, config: TrainConfig) -> int:
    """Return the bytes that the layers of a model return for two images; 0 if it fails on the ``meta`` device."""
    sizes: list[int] = []

    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    for module in skeleton.modules():
        if not any(module.children()):
            module.register_forward_hook(record)
    try:
        _difference(config, skeleton, "meta")
    except Exception:  # the model computes with values, or cannot read these images: found by the check itself
        return 0
    return sum(sizes)
