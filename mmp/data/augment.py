"""timm's training augmentations for whole batches of images in memory.

Augmenting one image at a time with PIL takes longer than the forward and backward pass of a small network. Here a batch
goes through a few tensor operations, on the device that holds it, as in airbench (Jordan 2024, arXiv 2404.00498). Every
image has its own random numbers.

Cropping, resizing and flipping are two matrix products per image, with the coefficients that PIL uses, and every step
rounds as PIL does: the same box, flips and factors give the same pixels. The exception is a crop that is resized to
fewer pixels. There PIL may resize columns before rows. Bilinear results then differ by one or two of the 256 levels,
and bicubic results, which are clipped after the first axis, sometimes by more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

# The layout of an image's uniform numbers. It is fixed, so switching an augmentation off leaves the others as they are.
_TRIES = 10  # attempts to draw a box that fits, as in timm
_BOX = 2 * _TRIES + 2  # area and aspect ratio of each attempt, then the position
_CROP, _FLIPS = slice(0, _BOX), slice(_BOX, _BOX + 2)
_FACTORS, _ORDER = slice(_BOX + 2, _BOX + 5), _BOX + 5
_ERASED, _ERASING = _BOX + 6, slice(_BOX + 7, 2 * _BOX + 7)
DRAWS = 2 * _BOX + 7

_CONTRAST, _SATURATION = 1, 2  # brightness is 0
_ORDERS = tuple(permutations(range(3)))

Interval = tuple[float, float]


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:
    """Return the cubic convolution kernel of Keys (1981) with a = -0.5, as PIL does; torch uses a = -0.75."""
    x = x.abs().clamp(max=2)
    return torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bilinear": _bilinear, "bicubic": _bicubic}


@dataclass(frozen=True)
class Augmentation:
    """A training transform of timm, for a batch of images.

    Attributes:
        size: Height and width of the result.
        scale: Interval of a crop's area, as a fraction of the image's area.
        ratio: Interval of a crop's aspect ratio, width over height.
        kernel: Name of the interpolation, a key of ``KERNELS``.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        flips: Probabilities of a horizontal and of a vertical flip.
        jitter: Intervals of the factors on brightness, contrast and saturation; None leaves the colours unchanged.
        erase: Probability that a rectangle is set to zero after normalisation.
        erase_area: Interval of the rectangle's area, as a fraction of the image's area.
        erase_ratio: Interval of the rectangle's aspect ratio, width over height.
    """

    size: tuple[int, int]
    scale: Interval
    ratio: Interval
    kernel: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: tuple[float, float]
    jitter: tuple[Interval, Interval, Interval] | None = None
    erase: float = 0.0
    erase_area: Interval = (0.0, 0.0)
    erase_ratio: Interval = (1.0, 1.0)

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Return the images, augmented and normalised: float32 (B, C, *size).

        Args:
            images: uint8 (B, C, H, W), with one or three channels if ``jitter`` is set.
            uniforms: Random numbers in [0, 1), float32 (B, DRAWS). Image b depends only on row b.
        """
        device, draws = images.device, uniforms.double()
        boxes = crops(draws[:, _CROP], images.shape[-2:], self.scale, self.ratio).to(device, torch.float32)
        flips = (draws[:, _FLIPS] < draws.new_tensor(self.flips)).to(device)
        result = resized(images.float(), boxes, flips, self.size, KERNELS[self.kernel])
        if self.jitter:
            low, high = draws.new_tensor(self.jitter).T
            factors = (low + (high - low) * draws[:, _FACTORS]).to(device, torch.float32)
            orders = torch.tensor(_ORDERS, device=device)[(draws[:, _ORDER] * len(_ORDERS)).long().to(device)]
            result = jittered(result, factors, orders)
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std))
        result = result.mul_(1 / (255 * std)).sub_(mean / std)
        if self.erase:
            most = (self.size[0] - 1, self.size[1] - 1)
            boxes, fits = _boxes(draws[:, _ERASING], self.size, most, self.erase_area, self.erase_ratio)
            where = _inside(boxes.to(device), self.size)
            where &= (fits & (draws[:, _ERASED] <= self.erase)).to(device).view(-1, 1, 1, 1)
            result = result.masked_fill_(where, 0)
        return result


def augmentation_of(transform: Any) -> Augmentation | None:
    """Return the same augmentation for batches, or None if one of its steps has no batch version.

    Args:
        transform: A transform from a PIL image to a normalised tensor, made by ``timm.data.create_transform``.
    """
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision.transforms import ColorJitter, Normalize, RandomHorizontalFlip, RandomVerticalFlip, ToTensor

    known: dict[str, Any] = {"flips": (0.0, 0.0)}
    for step in transform.transforms:
        match step:
            case RandomResizedCropAndInterpolation():
                known |= {"size": tuple(step.size), "scale": tuple(step.scale), "ratio": tuple(step.ratio)}
                known["kernel"] = getattr(step.interpolation, "value", "")  # a list if it is random
            case RandomHorizontalFlip():
                known["flips"] = (step.p, known["flips"][1])
            case RandomVerticalFlip():
                known["flips"] = (known["flips"][0], step.p)
            case ColorJitter() if step.hue is None:
                intervals = (step.brightness, step.contrast, step.saturation)
                known["jitter"] = tuple(each or (1.0, 1.0) for each in intervals) if any(intervals) else None
            case ToTensor():
                pass
            case Normalize():
                known |= {"mean": tuple(map(float, step.mean)), "std": tuple(map(float, step.std))}
            case RandomErasing() if step.mode == "const" and step.max_count == 1:
                low, high = step.log_aspect_ratio  # height over width
                known |= {"erase": step.probability, "erase_area": (step.min_area, step.max_area)}
                known["erase_ratio"] = (math.exp(-low), math.exp(-high))
            case _:
                return None
    return Augmentation(**known) if known.get("kernel") in KERNELS else None


def crops(uniforms: Tensor, image: Sequence[int], scale: Interval, ratio: Interval) -> Tensor:
    """Return the boxes of timm's RandomResizedCropAndInterpolation, float64 (B, 4): top, left, height, width.

    Args:
        uniforms: Random numbers in [0, 1), float64 (B, 22).
        image: Height and width of the images.
        scale: Interval of a box's area, as a fraction of the image's area.
        ratio: Interval of a box's aspect ratio, width over height; its logarithm is uniform.
    """
    height, width = image
    boxes, fits = _boxes(uniforms, image, image, scale, ratio)
    shape = min(max(width / height, min(ratio)), max(ratio))
    middle = (min(height, round(width / shape)), min(width, round(height * shape)))
    centre = [(height - middle[0]) // 2, (width - middle[1]) // 2, *middle]
    return torch.where(fits.unsqueeze(1), boxes, boxes.new_tensor(centre))


def resized(
    images: Tensor, boxes: Tensor, flips: Tensor, size: Sequence[int], kernel: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the box of each image, resized and flipped: whole numbers in [0, 255] as float32 (B, C, *size).

    Args:
        images: float32 (B, C, H, W), pixels in [0, 255].
        boxes: float32 (B, 4): top, left, height, width.
        flips: bool (B, 2): whether to flip horizontally, and whether to flip vertically.
        size: Height and width of the result.
        kernel: The interpolation kernel.
    """
    top, left, height, width = boxes.view(-1, 4, 1, 1).unbind(1)
    across = _coefficients(left, width, flips[:, 0], images.shape[3], size[1], kernel)
    down = _coefficients(top, height, flips[:, 1], images.shape[2], size[0], kernel)
    rows = _levels(torch.bmm(images.flatten(1, 2), across.mT).unflatten(1, images.shape[1:3]))
    return _levels(down.unsqueeze(1) @ rows)


def jittered(images: Tensor, factors: Tensor, orders: Tensor) -> Tensor:
    """Return images with changed brightness, contrast and saturation, as torchvision's ColorJitter does on PIL images.

    Args:
        images: float32 (B, C, H, W), whole numbers in [0, 255], with one or three channels.
        factors: float32 (B, 3): the factors on brightness, contrast and saturation.
        orders: int64 (B, 3): the order of these three steps, a permutation of 0 to 2.
    """
    for which in orders.T:
        grey = _grey(images)
        middle = (grey.mean((2, 3), keepdim=True) + 0.5).floor()
        kind = which.view(-1, 1, 1, 1)
        away = grey * (kind == _SATURATION) + middle * (kind == _CONTRAST)
        factor = factors.gather(1, which.unsqueeze(1)).view(-1, 1, 1, 1)
        images = torch.addcmul(away, images - away, factor).clamp_(0, 255).floor_()
    return images


def _boxes(
    uniforms: Tensor, image: Sequence[int], most: Sequence[int], area: Interval, ratio: Interval
) -> tuple[Tensor, Tensor]:
    """Return the first of ten boxes that is not larger than ``most``, (B, 4), and whether there is one, (B,)."""
    tries = uniforms[:, :-2].unflatten(1, (_TRIES, 2))
    areas = (area[0] + (area[1] - area[0]) * tries[..., 0]) * (image[0] * image[1])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = (low + (high - low) * tries[..., 1]).exp()
    sides = torch.stack([(areas / ratios).sqrt(), (areas * ratios).sqrt()], dim=2).round()
    fits = (sides <= sides.new_tensor(most)).all(2)
    side = sides[torch.arange(len(sides), device=sides.device), fits.byte().argmax(1)]
    first = (uniforms[:, -2:] * (side.new_tensor(image) - side + 1)).floor()
    return torch.cat([first, side], dim=1), fits.any(1)


def _inside(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Return a mask of the pixels inside the boxes (B, 4): bool (B, 1, *size)."""
    top, left, height, width = boxes.view(-1, 4, 1, 1, 1).unbind(1)
    row, column = (torch.arange(n, device=boxes.device) for n in size)
    row = row.view(-1, 1)
    return (row >= top) & (row < top + height) & (column >= left) & (column < left + width)


def _coefficients(
    first: Tensor, length: Tensor, mirrored: Tensor, inside: int, outside: int, kernel: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the matrices (B, outside, inside) that resize a part of one axis as PIL does.

    Args:
        first: Start of the part, in pixels, (B, 1, 1).
        length: Length of the part, in pixels, (B, 1, 1).
        mirrored: Whether the result is flipped, (B,).
        inside: Length of the image's axis, in pixels.
        outside: Length of the result's axis, in pixels.
        kernel: The interpolation kernel; it is widened if the result has fewer pixels than the part.
    """
    pixel, place = (torch.arange(n, device=first.device, dtype=first.dtype) for n in (inside, outside))
    place = torch.where(mirrored.unsqueeze(1), outside - 1 - place, place).unsqueeze(2)
    step = length / outside
    centre = first + (place + 0.5) * step
    weight = kernel((pixel + 0.5 - centre) / step.clamp(min=1)) * ((pixel >= first) & (pixel < first + length))
    return weight / weight.sum(2, keepdim=True)


def _levels(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def _grey(images: Tensor) -> Tensor:
    """Return images (B, 1 or 3, H, W) in grey, (B, 1, H, W), with PIL's coefficients, which are multiples of 2^-16."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    grey = (red * (19595 / 65536)).add_(green, alpha=38470 / 65536).add_(blue, alpha=7471 / 65536)
    return grey.add_(0.5).floor_()
