"""timm's training augmentations for whole batches of images in memory, each image with random numbers of its own.

One image at a time, Python and PIL cost more than a small network does. Here a batch goes through a handful of tensor
operations, on the device that holds it, as in airbench (Jordan 2024, arXiv 2404.00498). Crop, resizing and mirroring
are two matrix products an image, with PIL's own coefficients, and every step rounds where PIL does: the same box, flips
and factors make the same pixels. (Except where a crop shrinks: PIL then may do columns before rows, so that bilinear
results are a level or two apart; bicubic ones, clipped in between, sometimes more.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

# Where an image's uniform numbers are: places do not move when an augmentation is switched on or off.
_TRIES = 10  # at a box that fits; timm's number
_BOX = 2 * _TRIES + 2  # area and ratio of each, then the place
_CROP, _FLIPS = slice(0, _BOX), slice(_BOX, _BOX + 2)
_FACTORS, _ORDER = slice(_BOX + 2, _BOX + 5), _BOX + 5
_ERASED, _ERASING = _BOX + 6, slice(_BOX + 7, 2 * _BOX + 7)
DRAWS = 2 * _BOX + 7

_CONTRAST, _SATURATION = 1, 2  # brightness is 0
_ORDERS = tuple(permutations(range(3)))

Range = tuple[float, float]


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:
    """Return the kernel of Keys (1981) with a = -0.5, which is PIL's; torch's own has a = -0.75."""
    x = x.abs().clamp(max=2)
    return torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bilinear": _bilinear, "bicubic": _bicubic}


@dataclass(frozen=True)
class Augmentation:
    """What timm's transform does to a training image, for a batch.

    Attributes:
        size: Height and width of the result.
        scale: Range of a crop's area, of the whole image.
        ratio: Range of a crop's width over its height.
        kernel: Name of the interpolation, in ``KERNELS``.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
        flips: Probabilities of mirroring left and right, and top and bottom.
        jitter: Ranges of the factors of brightness, contrast and saturation; None where colours stay.
        erase: Probability that a rectangle becomes zero, after normalisation.
        erase_area: Range of its area, of the whole image.
        erase_ratio: Range of its width over its height.
    """

    size: tuple[int, int]
    scale: Range
    ratio: Range
    kernel: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: Range
    jitter: tuple[Range, Range, Range] | None = None
    erase: float = 0.0
    erase_area: Range = (0.0, 0.0)
    erase_ratio: Range = (1.0, 1.0)

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Return the images augmented and normalised, float32 (B, C, *size).

        Args:
            images: uint8 (B, C, H, W), of one or three channels.
            uniforms: Random numbers in [0, 1), float32 (B, DRAWS): row b alone decides what happens to image b.
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
    """Return what a transform of timm's ``create_transform`` does, or None if not all of it can be done in batches.

    Args:
        transform: From a PIL image to a normalised tensor.
    """
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision.transforms import ColorJitter, Normalize, RandomHorizontalFlip, RandomVerticalFlip, ToTensor

    known: dict[str, Any] = {"flips": (0.0, 0.0)}
    for step in transform.transforms:
        match step:
            case RandomResizedCropAndInterpolation():
                known |= {"size": tuple(step.size), "scale": tuple(step.scale), "ratio": tuple(step.ratio)}
                known["kernel"] = getattr(step.interpolation, "value", "")  # several where it is random
            case RandomHorizontalFlip():
                known["flips"] = (step.p, known["flips"][1])
            case RandomVerticalFlip():
                known["flips"] = (known["flips"][0], step.p)
            case ColorJitter() if step.hue is None:
                ranges = (step.brightness, step.contrast, step.saturation)
                known["jitter"] = tuple(each or (1.0, 1.0) for each in ranges) if any(ranges) else None
            case ToTensor():
                pass
            case Normalize():
                known |= {"mean": tuple(map(float, step.mean)), "std": tuple(map(float, step.std))}
            case RandomErasing() if step.mode == "const" and step.max_count == 1:
                low, high = step.log_aspect_ratio  # of height over width
                known |= {"erase": step.probability, "erase_area": (step.min_area, step.max_area)}
                known["erase_ratio"] = (math.exp(-low), math.exp(-high))
            case _:
                return None
    return Augmentation(**known) if known.get("kernel") in KERNELS else None


def crops(uniforms: Tensor, image: Sequence[int], scale: Range, ratio: Range) -> Tensor:
    """Return boxes as of timm's RandomResizedCropAndInterpolation, float64 (B, 4): top, left, height, width.

    Args:
        uniforms: float64 (B, 22).
        image: Height and width of the images.
        scale: Range of a box's area, of the image's.
        ratio: Range of its width over its height, whose logarithm is uniform.
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
    """Return each image's box, enlarged or shrunk to one size, and mirrored: whole levels as float32 (B, C, *size).

    Args:
        images: float32 (B, C, H, W) of levels from 0 to 255.
        boxes: float32 (B, 4): top, left, height, width.
        flips: bool (B, 2): whether to mirror left and right, and top and bottom.
        size: Height and width of the result.
        kernel: Of the interpolation.
    """
    top, left, height, width = boxes.view(-1, 4, 1, 1).unbind(1)
    across = _coefficients(left, width, flips[:, 0], images.shape[3], size[1], kernel)
    down = _coefficients(top, height, flips[:, 1], images.shape[2], size[0], kernel)
    rows = _levels(torch.bmm(images.flatten(1, 2), across.mT).unflatten(1, images.shape[1:3]))
    return _levels(down.unsqueeze(1) @ rows)


def jittered(images: Tensor, factors: Tensor, orders: Tensor) -> Tensor:
    """Return images with other brightness, contrast and saturation, as of torchvision's ColorJitter on PIL images.

    Args:
        images: float32 (B, C, H, W) of whole levels from 0 to 255, one or three channels.
        factors: float32 (B, 3), of brightness, contrast and saturation.
        orders: int64 (B, 3): a permutation of 0 to 2, which of these comes when.
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
    uniforms: Tensor, image: Sequence[int], most: Sequence[int], area: Range, ratio: Range
) -> tuple[Tensor, Tensor]:
    """Return the first of ten tries that is not larger than ``most``, (B, 4), and whether there is one, (B,)."""
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
    """Return which pixels are in boxes (B, 4), bool (B, 1, *size)."""
    top, left, height, width = boxes.view(-1, 4, 1, 1, 1).unbind(1)
    row, column = (torch.arange(n, device=boxes.device) for n in size)
    row = row.view(-1, 1)
    return (row >= top) & (row < top + height) & (column >= left) & (column < left + width)


def _coefficients(
    first: Tensor, length: Tensor, mirrored: Tensor, inside: int, outside: int, kernel: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return PIL's coefficients of resizing ``length`` of ``inside`` pixels to ``outside``, (B, outside, inside).

    Args:
        first: Where a box begins, (B, 1, 1).
        length: How long it is, (B, 1, 1).
        mirrored: Whether the result is, (B,).
        inside: Pixels of the image.
        outside: Pixels of the result.
        kernel: Of the interpolation; it is widened where the result is smaller.
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
    """Return PIL's grey (B, 1, H, W) of images (B, 1 or 3, H, W), exactly: its coefficients are multiples of 2^-16."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    grey = (red * (19595 / 65536)).add_(green, alpha=38470 / 65536).add_(blue, alpha=7471 / 65536)
    return grey.add_(0.5).floor_()
