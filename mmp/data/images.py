"""Labelled images, in memory or in files, normalised by timm's transforms and augmented if configured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from mmp.config.schema import DataConfig
from mmp.data.augment import DRAWS, Augmentation, augmentation_of
from mmp.data.decoding import Decoding
from mmp.data.image_files import FileImages
from mmp.errors import MmpError, nearest
from mmp.machine import memory

Samples = list[tuple[str, int]]

_RESIZED_AT_ONCE = 1024  # images; as float32, they need several times the memory of their pixels

# The arguments of timm's create_transform that affect only training images. The model states the others.
AUGMENTATIONS = (
    "train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter", "color_jitter_prob", "grayscale_prob",
    "gaussian_blur_prob", "auto_augment", "re_prob", "re_mode", "re_count",
)  # fmt: skip


class Images(Protocol):
    """Labelled images. An item is a float32 tensor (C, H, W) and a class."""

    labels: Tensor

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]: ...

    def fingerprint(self) -> str:
        """Return a hash that changes if the images change."""
        ...


@dataclass(frozen=True)
class Source:
    """The images of a data set, returned by its reader.

    Attributes:
        train: Training images, augmented.
        plain: The same images without augmentation, for evaluation.
        test: The official test images; None if the data set has none.
        groups: Group of every training image, shape (N,). Images of one group are near duplicates (such as frames of
            one traffic sign) and always go into the same split. None if every image is its own group.
        classes: Name of every class, in the order of the labels; None if the files do not state them.
        validation: The official validation images; None if the data set has none.
    """

    train: Images
    plain: Images
    test: Images | None = None
    groups: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    validation: Images | None = None


def files_of(images: Images) -> FileImages | None:
    """Return the files of images; None if they are in no files, or several in one."""
    return images if isinstance(images, FileImages) else getattr(images, "files", None)


class TensorImages:
    """Images in memory, normalised a batch at a time.

    Args:
        images: uint8 tensor (N, C, H, W).
        labels: int64 tensor (N,).
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        original: Height and width of the images before they were resized; by default their size.

    Attributes:
        files: The files that the images were read from; None if they are in no files, or several in one.
    """

    files: FileImages | None = None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        original: Sequence[int] | None = None,
    ) -> None:
        self.images, self.labels = images, labels
        self.original = tuple(original or images.shape[-2:])
        self._scale = (1 / (255 * torch.tensor(std))).view(-1, 1, 1)
        self._shift = (torch.tensor(mean) / torch.tensor(std)).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index].float() * self._scale - self._shift, self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return one batch: float32 (B, C, H, W) and int64 (B,)."""
        where = torch.as_tensor(indices)
        return self.images[where].float() * self._scale - self._shift, self.labels[where]

    def to(self, device: torch.device, indices: Sequence[int]) -> TensorImages:
        """Return a copy of some images on a device, which then prepares the batches.

        Args:
            device: The device.
            indices: Their indices, in the order that they will have.
        """
        placed = copy(self)
        placed.images, placed.labels = (values[list(indices)].to(device) for values in (self.images, self.labels))
        placed._scale, placed._shift = self._scale.to(device), self._shift.to(device)
        return placed

    def fingerprint(self) -> str:
        """Return a SHA-256 of pixels and labels."""
        return _pixels_digest(self.images, self.labels)


class AugmentedImages:
    """Images in memory, augmented and normalised a batch at a time.

    Args:
        images: uint8 tensor (N, C, H, W).
        labels: int64 tensor (N,).
        augmentation: The augmentation of a batch.

    Attributes:
        draws: Number of random numbers per image.
    """

    draws = DRAWS

    def __init__(self, images: Tensor, labels: Tensor, augmentation: Augmentation) -> None:
        self.images, self.labels, self._augmentation = images, labels, augmentation

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.augmented([index], torch.rand(1, DRAWS))
        return images[0], labels[0]

    def augmented(self, indices: list[int], uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Return one batch, float32 (B, C, H, W) and int64 (B,).

        Args:
            indices: Indices of the B images.
            uniforms: Random numbers in [0, 1), float32 (B, draws).
        """
        where = torch.as_tensor(indices)
        return self._augmentation(self.images[where], uniforms), self.labels[where]

    def to(self, device: torch.device, indices: Sequence[int]) -> AugmentedImages:
        """Return a copy of some images on a device, which then prepares the batches.

        Args:
            device: The device.
            indices: Their indices, in the order that they will have.
        """
        images, labels = (values[list(indices)].to(device) for values in (self.images, self.labels))
        return AugmentedImages(images, labels, self._augmentation)

    def fingerprint(self) -> str:
        """Return a SHA-256 of pixels and labels."""
        return _pixels_digest(self.images, self.labels)


class TransformedImages:
    """Images in memory, transformed one at a time: for augmentations without a batch version, and for resizing.

    Args:
        images: uint8 tensor (N, C, H, W) with one or three channels.
        labels: int64 tensor (N,).
        transform: A transform from a PIL image to a float32 tensor.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.labels, self._transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = self.images[index].permute(1, 2, 0).squeeze(-1).numpy()
        return self._transform(Image.fromarray(pixels)), self.labels[index]

    def fingerprint(self) -> str:
        """Return a SHA-256 of pixels and labels."""
        return _pixels_digest(self.images, self.labels)


def transform_of(cfg: DataConfig, training: bool) -> Callable[[Image.Image], Tensor]:
    """Return timm's transform from a PIL image to a normalised tensor (C, H, W).

    Args:
        cfg: The data set; image size, mean and standard deviation must be set.
        training: Whether to augment.

    Raises:
        MmpError: if timm does not know an augmentation, or does not accept its value.
    """
    from timm.data import create_transform

    assert cfg.image_size is not None
    chosen = (cfg.augment or {}) if training else {}
    augment: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
    for key in augment:
        if key not in AUGMENTATIONS:
            raise MmpError(f"data.augment.{key}: no such augmentation; {nearest(key, AUGMENTATIONS)}")
    if cfg.channels not in (1, 3):
        _require_no_colours(cfg.channels, augment)
    options = _stated(cfg)
    try:
        return create_transform(**options, is_training=training and cfg.augment is not None, **augment)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise MmpError(f"data.augment={augment}: timm does not accept it with {options} ({error})") from error


def _require_no_colours(channels: int, augment: Mapping[str, Any]) -> None:
    """Raise an error if an augmentation changes colours in a way that loses channels or fails."""
    jitter = augment.get("color_jitter")
    hue = isinstance(jitter, tuple) and len(jitter) > 3 and jitter[3]
    for key in ("auto_augment", "grayscale_prob", *(["color_jitter"] if hue else [])):
        if augment.get(key):
            raise MmpError(
                f"data.augment.{key}={augment[key]}: works on images of 1 or 3 channels only, but data.channels="
                f"{channels}; remove it"
            )


def _stated(cfg: DataConfig) -> dict[str, Any]:
    """Return the arguments of timm's ``create_transform`` that do not depend on the augmentation."""
    stated = {"interpolation": cfg.interpolation, "crop_pct": cfg.crop_pct, "crop_mode": cfg.crop_mode}
    size = (cfg.channels, cfg.image_size, cfg.image_size)
    fixed = {"input_size": size, "mean": tuple(cfg.mean or ()), "std": tuple(cfg.std or ())}
    return fixed | {key: value for key, value in stated.items() if value is not None}


def recipe_of(images: Images, cfg: DataConfig) -> str:
    """Return instructions, as text with Python code, that prepare an image of the data set for evaluation."""
    if not isinstance(images, TensorImages) or images.files is not None:
        arguments = ", ".join(f"{key}={value!r}" for key, value in _stated(cfg).items())
        decoding = Decoding(cfg.channels, cfg.background)
        return f"{decoding.recipe}, and transformed by `timm.data.create_transform({arguments})`"
    size = tuple(images.images.shape[-2:])
    height, width = images.original
    if images.original == size:
        resizing = "not resized"
    else:
        call = f"interpolate(pixels.float(), {size}, mode='bilinear', antialias=True).round().clamp(0, 255)"
        resizing = f"resized by `torch.nn.functional.{call}`"
    normalisation = f"`(pixels / 255 - mean) / std` with mean {cfg.mean} and std {cfg.std} per channel"
    return f"{height}x{width} pixels in [0, 255] are {resizing}, then normalised by {normalisation}"


def in_memory(pixels: Tensor, labels: Tensor, cfg: DataConfig, resize_now: bool = True) -> tuple[Images, Images]:
    """Return images in memory twice: augmented for training, and without augmentation for evaluation.

    Args:
        pixels: uint8 tensor (N, C, H, W).
        labels: int64 tensor (N,).
        cfg: The data set; image size, mean and standard deviation must be set.
        resize_now: Whether to resize all images for evaluation at once and keep them in memory. Otherwise each image is
            resized when it is indexed.

    Raises:
        MmpError: if ``data.channels`` is wrong, the augmentation does not work on these images, or they do not fit into
            memory at the model's size.
    """
    if (found := pixels.shape[1]) != cfg.channels:
        raise MmpError(
            f"data.channels={cfg.channels}, but images of {cfg.name} have {found} channels; set data.channels={found}"
        )
    assert cfg.image_size is not None
    size = (cfg.image_size, cfg.image_size)
    plain: Images
    coloured = cfg.channels in (1, 3)  # other channels have no mode in PIL, or one that takes the last for transparency
    if pixels.shape[-2:] == size or resize_now or not coloured:
        exact = pixels
        if pixels.shape[-2:] != size:
            _require_memory(len(pixels), cfg, "data.image_size", f"set data.image_size={max(pixels.shape[-2:])}")
            exact = torch.cat([_resized(part, size) for part in pixels.split(_RESIZED_AT_ONCE)])
        plain = TensorImages(exact, labels, cfg.mean or (), cfg.std or (), pixels.shape[-2:])
    else:
        plain = TransformedImages(pixels, labels, transform_of(cfg, training=False))
    if cfg.augment is None:
        return plain, plain
    transform = transform_of(cfg, training=True)
    augmentation = augmentation_of(transform) if cfg.augment_batches else None
    if coloured and augmentation is None:
        return TransformedImages(pixels, labels, transform), plain
    if augmentation is None or (augmentation.jitter and not coloured):
        raise MmpError(
            f"data.augment={cfg.augment}: images in memory with data.channels={cfg.channels} are augmented only by "
            "timm's crops, flips and erasing, a batch at a time; set data.augment={color_jitter: null} or "
            "data.augment=null"
        )
    return AugmentedImages(pixels, labels, augmentation), plain


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(pixels.float(), size, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)


def _require_memory(count: int, cfg: DataConfig, key: str, way_out: str) -> None:
    """Raise if a number of images does not fit into the memory that this process may use."""
    assert cfg.image_size is not None
    available, needed = memory(), count * cfg.channels * cfg.image_size**2
    if needed > available.usable:
        raise MmpError(
            f"{key}={str(getattr(cfg, key.removeprefix('data.'))).lower()}: {count} images of {cfg.image_size} pixels "
            f"need {needed / 1e9:.4g} GB, and {available.describe()}; {way_out}"
        )


def of_files(samples: Samples, root: Path, cfg: DataConfig) -> tuple[Images, Images]:
    """Return image files twice: augmented for training, and without augmentation for evaluation.

    With ``data.in_memory``, all files are read now.

    Args:
        samples: Path and class of every image.
        root: A folder that contains all of them.
        cfg: The data set; image size, mean and standard deviation must be set.

    Raises:
        MmpError: if timm does not accept the augmentation, a file that is read now is not an image, or the images do
            not fit into memory.
    """
    decoding = Decoding(cfg.channels, cfg.background)
    plain = FileImages(samples, root, decoding, transform_of(cfg, training=False))
    if not cfg.in_memory:
        return FileImages(samples, root, decoding, transform_of(cfg, training=True)), plain
    plain.check()
    assert cfg.image_size is not None
    _require_memory(len(plain), cfg, "data.in_memory", "set data.in_memory=false")
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (cfg.mean, cfg.std))
    pixels = torch.empty(len(plain), cfg.channels, cfg.image_size, cfg.image_size, dtype=torch.uint8)
    for index, levels in enumerate(pixels):
        levels.copy_(((plain[index][0] * std + mean) * 255).round())
    train, kept = in_memory(pixels, plain.labels, cfg)
    if isinstance(kept, TensorImages):
        kept.files = plain
    return train, kept


def _pixels_digest(images: Tensor, labels: Tensor) -> str:
    sha = hashlib.sha256(images.numpy().data)
    sha.update(labels.numpy().data)
    return sha.hexdigest()
