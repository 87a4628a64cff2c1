"""Images with labels: in memory or in files, normalised by timm's transforms and augmented where configured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
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
from mmp.errors import MmpError, nearest

Samples = list[tuple[str, int]]

# What timm's create_transform does to training images only; the rest of its arguments is the model's.
AUGMENTATIONS = (
    "train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter", "color_jitter_prob", "grayscale_prob",
    "gaussian_blur_prob", "auto_augment", "re_prob", "re_mode", "re_count",
)  # fmt: skip


class Images(Protocol):
    """Images with their labels; an item is a float32 tensor (C, H, W) and a class."""

    labels: Tensor

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]: ...

    def fingerprint(self) -> str:
        """Return a hash that changes when the images do."""
        ...


@dataclass(frozen=True)
class Source:
    """What a reader returns.

    Attributes:
        train: Training images as they are trained on, augmented.
        plain: The same images, as they are evaluated.
        test: The official test images, None where the data set has none.
        groups: Group of every training image, shape (N,): images of one group are near copies (frames of one sign)
            and must not be split. None where every image stands for itself.
    """

    train: Images
    plain: Images
    test: Images | None = None
    groups: np.ndarray | None = None


class TensorImages:
    """Images in memory, normalised a whole batch at a time.

    Args:
        images: uint8 tensor (N, C, H, W).
        labels: int64 tensor (N,).
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
        original: Height and width that the images had before they were resized.
    """

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

    def fingerprint(self) -> str:
        """Return a SHA-256 of pixels and labels."""
        return _pixels_digest(self.images, self.labels)


class AugmentedImages:
    """Images in memory, augmented and normalised a whole batch at a time.

    Args:
        images: uint8 tensor (N, C, H, W) with one or three channels.
        labels: int64 tensor (N,).
        augmentation: What to do with them.

    Attributes:
        draws: How many random numbers an image takes.
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
        """Return one batch, float32 (B, C, H, W) and int64 (B,), of random numbers (B, draws) in [0, 1)."""
        where = torch.as_tensor(indices)
        return self._augmentation(self.images[where], uniforms), self.labels[where]

    def fingerprint(self) -> str:
        """Return a SHA-256 of pixels and labels."""
        return _pixels_digest(self.images, self.labels)


class TransformedImages:
    """Images in memory that go through a transform one by one: resized, or augmented as no batch can be.

    Args:
        images: uint8 tensor (N, C, H, W) with one or three channels.
        labels: int64 tensor (N,).
        transform: From a PIL image to a float32 tensor.
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


class FileImages:
    """Image files that are read when they are asked for.

    Args:
        samples: Path and class of every image.
        root: Folder that all paths lie in.
        grey: Whether to read one channel rather than three.
        transform: From a PIL image to a float32 tensor.
    """

    def __init__(self, samples: Samples, root: Path, grey: bool, transform: Callable[[Image.Image], Tensor]) -> None:
        self._samples, self._root, self._mode, self._transform = samples, root, "L" if grey else "RGB", transform
        self.labels = torch.tensor([label for _, label in samples])

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._samples[index]
        try:
            with Image.open(path) as image:
                return self._transform(image.convert(self._mode)), label
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise MmpError(f"{path}: not a readable image ({error}); replace the file or remove it") from error

    def check(self, indices: Iterable[int]) -> None:
        """Raise if one of these files has no header of an image; its pixels are not read.

        Raises:
            MmpError: naming the file.
        """
        for index in indices:
            path, _ = self._samples[index]
            try:
                Image.open(path).close()
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise MmpError(f"{path}: not a readable image ({error}); replace the file or remove it") from error

    def fingerprint(self) -> str:
        """Return a SHA-256 of the names and sizes of all files."""
        sha = hashlib.sha256()
        for name, label in self._samples:
            path = Path(name)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise MmpError(f"{path}: no such image ({error.strerror}); the data set is incomplete") from error
            sha.update(f"{path.relative_to(self._root)}|{size}|{label}\n".encode())
        return sha.hexdigest()


def transform_of(cfg: DataConfig, training: bool) -> Callable[[Image.Image], Tensor]:
    """Return timm's transform from a PIL image to a normalised tensor (C, H, W).

    Args:
        cfg: Size, normalisation, interpolation and crop, all set; and the augmentations.
        training: Whether to augment.

    Raises:
        MmpError: on an augmentation that timm does not know or a value that it refuses.
    """
    from timm.data import create_transform

    assert cfg.image_size is not None
    chosen = (cfg.augment or {}) if training else {}
    augment: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
    for key in augment:
        if key not in AUGMENTATIONS:
            raise MmpError(f"data.augment.{key}: no such augmentation; {nearest(key, AUGMENTATIONS)}")
    options = _stated(cfg)
    try:
        return create_transform(**options, is_training=training and cfg.augment is not None, **augment)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise MmpError(f"data.augment={augment} with {options}: timm refuses it ({error})") from error


def _stated(cfg: DataConfig) -> dict[str, Any]:
    """Return the arguments of timm's ``create_transform`` that a data set states."""
    stated = {"interpolation": cfg.interpolation, "crop_pct": cfg.crop_pct, "crop_mode": cfg.crop_mode}
    size = (cfg.channels, cfg.image_size, cfg.image_size)
    fixed = {"input_size": size, "mean": tuple(cfg.mean or ()), "std": tuple(cfg.std or ())}
    return fixed | {key: value for key, value in stated.items() if value is not None}


def recipe_of(images: Images, cfg: DataConfig) -> str:
    """Return how images as they are evaluated come from those of the data set, with the Python that does the same."""
    if not isinstance(images, TensorImages):
        mode = f"`image.convert({'L' if cfg.channels == 1 else 'RGB'!r})`"
        arguments = ", ".join(f"{key}={value!r}" for key, value in _stated(cfg).items())
        return f"each is made of a PIL image, {mode}, by `timm.data.create_transform({arguments})`"
    size = tuple(images.images.shape[-2:])
    told = f"{images.original[0]}x{images.original[1]} pixels of 0 to 255 "
    if images.original == size:
        told += "as they are"
    else:
        resized = f"interpolate(pixels.float(), {size}, mode='bilinear', antialias=True).round().clamp(0, 255)"
        told += f"resized by `torch.nn.functional.{resized}`"
    return f"{told}, then `(pixels / 255 - mean) / std` with mean {cfg.mean} and std {cfg.std} of each channel"


def in_memory(pixels: Tensor, labels: Tensor, cfg: DataConfig, resize_now: bool = True) -> tuple[Images, Images]:
    """Return images as they are trained on and as they are evaluated.

    Args:
        pixels: uint8 tensor (N, C, H, W).
        labels: int64 tensor (N,).
        cfg: Size, normalisation and augmentation.
        resize_now: Whether all images may be resized at once, which keeps them all in memory at their new size.

    Raises:
        MmpError: if the configuration has another number of channels, or on an augmentation that timm refuses.
    """
    if pixels.shape[1] != cfg.channels:
        raise MmpError(f"data.channels={cfg.channels}, but images of {cfg.name} have {pixels.shape[1]} channels")
    assert cfg.image_size is not None
    size = (cfg.image_size, cfg.image_size)
    plain: Images
    if pixels.shape[-2:] == size or resize_now:
        exact = pixels
        if pixels.shape[-2:] != size:
            resized = interpolate(pixels.float(), size, mode="bilinear", antialias=True)
            exact = resized.round().clamp(0, 255).to(torch.uint8)
        plain = TensorImages(exact, labels, cfg.mean or (), cfg.std or (), pixels.shape[-2:])
    else:
        plain = TransformedImages(pixels, labels, transform_of(cfg, training=False))
    if cfg.augment is None:
        return plain, plain
    transform = transform_of(cfg, training=True)
    augmentation = augmentation_of(transform) if cfg.augment_batches and cfg.channels in (1, 3) else None
    if augmentation is None:
        return TransformedImages(pixels, labels, transform), plain
    return AugmentedImages(pixels, labels, augmentation), plain


def of_files(samples: Samples, root: Path, cfg: DataConfig) -> tuple[Images, Images]:
    """Return images of files as they are trained on and as they are evaluated; read now if they are kept in memory.

    Args:
        samples: Path and class of every image.
        root: Folder that all paths lie in.
        cfg: Channels, size, normalisation and augmentation.

    Raises:
        MmpError: on an augmentation that timm refuses, or a damaged file that is read.
    """
    grey = cfg.channels == 1
    plain = FileImages(samples, root, grey, transform_of(cfg, training=False))
    if not cfg.in_memory:
        return FileImages(samples, root, grey, transform_of(cfg, training=True)), plain
    assert cfg.image_size is not None
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (cfg.mean, cfg.std))
    pixels = torch.empty(len(plain), cfg.channels, cfg.image_size, cfg.image_size, dtype=torch.uint8)
    for index, levels in enumerate(pixels):
        levels.copy_(((plain[index][0] * std + mean) * 255).round())
    return in_memory(pixels, plain.labels, cfg)


def _pixels_digest(images: Tensor, labels: Tensor) -> str:
    sha = hashlib.sha256(images.numpy().data)
    sha.update(labels.numpy().data)
    return sha.hexdigest()
