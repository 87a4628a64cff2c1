"""The images of a joint tuning: those that are tuned on, and those that are held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.pruning.reconstruction.reconstruct import images_of
from mmp.tensors import tensors_digest

_SHARE, _LEAST = 0.1, 32  # of the images that are held out
LEAST_IMAGES = 2 * _LEAST  # that can be divided
_BATCH = 64  # images


Batches = Iterable[Tensor | Sequence[Tensor]]


def divided(images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the images to tune on, and a tenth of all images to hold out, but at least 32, in an order by chance.

    Args:
        images: Single images, (C, H, W) each. The same number of images is always divided in the same way.

    Raises:
        MmpError: if there are fewer than 64 images, or they differ in size.
    """
    _require_one_size(images)
    if len(images) < LEAST_IMAGES:
        raise MmpError(
            f"joint tuning needs at least {LEAST_IMAGES} images, of which it holds out {_LEAST}, but there are "
            f"{len(images)}; pass more (in a run: raise reconstruct.tuning.images or data.calibration)"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0), device="cpu").tolist()
    held = max(_LEAST, round(_SHARE * len(images)))
    return [images[i] for i in order[held:]], [images[i] for i in order[:held]]


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return new images from those of a batch: each is mirrored by chance, and a rectangle shows another image.

    So a few images give many different ones. No label is needed, since the dense network says what it sees in each
    (Yun et al. 2019, arXiv 1905.04899, mix images with their labels). The rectangle lies between two random points, and
    covers a ninth of an image on average.

    Args:
        images: A batch (B, C, H, W).
        generator: A random generator of the CPU.
    """
    count, _, height, width = images.shape
    mirrored = torch.rand(count, 1, 1, 1, generator=generator, device="cpu") < 0.5
    inside = _between(height, count, generator)[:, None, :, None] & _between(width, count, generator)[:, None, None, :]
    images = torch.where(mirrored.to(images.device), images.flip(3), images)
    return torch.where(inside.to(images.device), images.roll(1, 0), images)


def _between(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Return for ``count`` images which of ``size`` rows or columns lie between two random ones, (count, size)."""
    first, last = torch.randint(size, (2, count, 1), generator=generator, device="cpu").sort(0).values
    places = torch.arange(size, device="cpu")
    return (first <= places) & (places <= last)


def stacked(images: Sequence[Tensor], most: int) -> list[Tensor]:
    """Return the first ``most`` of single images in batches, as :func:`mmp.reconstruct` takes them."""
    return list(torch.stack(list(images[:most])).split(_BATCH))


def singly(images: Iterable[Tensor]) -> list[Tensor]:
    """Return single images as batches of one, without a copy."""
    return [image.unsqueeze(0) for image in images]


def _require_one_size(images: Iterable[Tensor]) -> None:
    if len(sizes := {tuple(image.shape) for image in images}) > 1:
        raise MmpError(f"joint tuning needs images of one size, but there are {sorted(sizes)}; resize them")


def _single(batches: Batches) -> list[Tensor]:
    return [image for number, batch in enumerate(batches) for image in images_of(number, batch).detach()]


@dataclass(frozen=True)
class TuningImages:
    """Images of one size without labels. A single image is a view of its batch, so that nothing is copied.

    Attributes:
        tuned: Images to tune on, (C, H, W) each.
        held: Images on which the tuning is judged.
        device: The device of the batches that are made of them.
        layout: The order in memory of these batches.
    """

    tuned: Sequence[Tensor]
    held: Sequence[Tensor]
    device: torch.device
    layout: torch.memory_format = torch.contiguous_format

    @classmethod
    def of(cls, batches: Batches, held: Batches | None, device: torch.device) -> TuningImages:
        """Read the images.

        Args:
            batches: Batches (B, C, H, W), or pairs whose first element is one.
            held: The same, of the images that are held out; None takes them from ``batches``, as :func:`divided` does.
            device: The device of the network.

        Raises:
            MmpError: if there are too few images, or they differ in size.
        """
        images = _single(batches)
        tuned, kept = divided(images) if held is None else (images, _single(held))
        if not tuned or not kept:
            raise MmpError("joint tuning needs images to tune on and images that are held out; one of the two is empty")
        _require_one_size([*tuned, *kept])
        return cls(tuned, kept, device)

    def arranged_for(self, *networks: nn.Module) -> TuningImages:
        """Return the images for some networks: on the CPU with channels last, which is faster, unless a network fails.

        ``Tensor.view`` fails on a feature map in this layout.
        """
        if self.device.type != "cpu" or self.tuned[0].dim() != 3:
            return self
        arranged = replace(self, layout=torch.channels_last)
        try:
            with torch.no_grad():
                for network in networks:
                    network(arranged._together(self.tuned[:2]))
        except RuntimeError:
            return self
        return arranged

    def batch(self, step: int, size: int) -> Tensor:
        """Return the images of one step, :func:`varied`.

        The images come in turns, each in another order. In a turn, none comes twice, and those that do not fill a step
        are left out.

        Args:
            step: Number of the step, from 0.
            size: Number of images, or all if there are fewer.
        """
        size = min(size, len(self.tuned))
        turn, place = divmod(step, len(self.tuned) // size)
        order = torch.randperm(len(self.tuned), generator=torch.Generator().manual_seed(turn), device="cpu")
        images = self._together([self.tuned[i] for i in order[place * size : (place + 1) * size]])
        return varied(images, torch.Generator().manual_seed(step)) if images.dim() == 4 else images

    def held_batches(self, most: int = _BATCH) -> Iterator[Tensor]:
        """Yield the images that are held out, in batches of at most ``most``."""
        for start in range(0, len(self.held), most):
            yield self._together(self.held[start : start + most])

    def digest(self) -> str:
        """Return a hash of all images and of how they are divided."""
        parts = {"held": self.held, "tuned": self.tuned}
        return tensors_digest(
            {f"{part}/{i}": image for part, images in parts.items() for i, image in enumerate(images)}
        )

    def _together(self, images: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(images)).to(self.device).contiguous(memory_format=self.layout)
