"""Calibration images from Python: read once, and checked before any work is done."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmp.errors import MmpError
from mmp.pruning.calibration_statistics import Loss
from mmp.pruning.layers.eval_mode import evaluating
from mmp.tensors import all_finite

Images = Tensor | Iterable[Tensor | Sequence[Any]]  # a batch, batches, or pairs that begin with a batch
Labels = Tensor | Iterable[Any]

_BATCH = 128  # images of a batch, where all images come as one tensor
_UNLABELLED = frozenset({"input_covariance"})  # the statistics that need no labels


@dataclass(frozen=True)
class CalibrationImages:
    """Images that weights are scored and re-solved on.

    Attributes:
        images: Batches (B, C, H, W); none of them is empty.
        labels: Labels (B, ...) of each batch; empty if there are none.
    """

    images: tuple[Tensor, ...] = ()
    labels: tuple[Tensor, ...] = ()

    @classmethod
    def read(
        cls,
        model: nn.Module,
        images: Images | None = None,
        labels: Labels | None = None,
        needs: Mapping[str, frozenset[str]] | None = None,
        loss: Loss = cross_entropy,
    ) -> CalibrationImages:
        """Read images, move them to the model's device, and check that the model and its loss accept them.

        Args:
            model: A trained model with at least one parameter.
            images: A tensor (B, C, H, W), or an iterable of such batches or of (images, labels) pairs.
            labels: Labels of the images, if these do not come in pairs: a tensor (B, ...), or an iterable of its parts.
            needs: Statistics that will be collected, by the setting that needs them, such as ``signal=product``.
            loss: The loss used in training, a function of outputs and labels.

        Raises:
            MmpError: if images or labels are missing, empty, not finite, or of the wrong type, shape or number; or if
                the model or the loss does not accept them.
        """
        needs = {setting: statistics for setting, statistics in (needs or {}).items() if statistics}
        if images is None:
            for setting in needs:
                raise MmpError(
                    f"{setting} needs images; pass images=..., batches (B, C, H, W) as the model was trained on"
                )
            return cls()
        if torch.is_inference_mode_enabled():
            raise MmpError(
                "calibration needs gradients, which torch.inference_mode() forbids; use torch.no_grad() there"
            )
        batches, found = _read_images(images)
        if labels is not None:
            found = _read_labels(labels, found, batches)
        labelled = [setting for setting, statistics in needs.items() if statistics - _UNLABELLED]
        if labelled and not found:
            raise MmpError(f"{labelled[0]} needs labels; pass labels=..., or images=... as (images, labels) pairs")
        device = next(model.parameters()).device
        read = cls(tuple(batch.to(device) for batch in batches), tuple(part.to(device) for part in found))
        read._try(model, loss if labelled else None)
        return read

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Batches with their labels; without labels, with the images again, for statistics that ignore labels."""
        return list(zip(self.images, self.labels or self.images, strict=True))

    def first(self, most: int) -> list[Tensor]:
        """Return the batches of the first ``most`` images."""
        starts = itertools.accumulate(map(len, self.images), initial=0)
        return [batch[: most - start] for batch, start in zip(self.images, starts, strict=False) if start < most]

    def _try(self, model: nn.Module, loss: Loss | None) -> None:
        """Run one image of each size through the model, and through the loss if there is one."""
        one_of_each = {tuple(images.shape[1:]): (images[:1], labels[:1]) for images, labels in self.pairs}
        for image, label in one_of_each.values():
            try:
                with evaluating(model), torch.no_grad():
                    output = model(image)
            except Exception as error:  # a model can raise any exception
                raise MmpError(f"images: {_name(model)} does not accept {_kind(image)} ({_text(error)})") from error
            if loss is None:
                continue
            _check_classes(output, self.labels, loss)
            try:
                loss(output, label)
            except Exception as error:  # a loss can raise any exception
                raise MmpError(f"labels: the loss does not accept {_kind(label)} ({_text(error)})") from error


def _read_images(images: Images) -> tuple[list[Tensor], list[Tensor]]:
    """Return the batches that hold images, and their labels; no labels unless every batch has them."""
    if not isinstance(images, Iterable):
        raise MmpError(f"images is a {_name(images)}; pass a tensor (B, C, H, W), a DataLoader, or a list of batches")
    batches: list[Tensor] = []
    labels: list[Tensor] = []
    for number, batch in enumerate(images.split(_BATCH) if isinstance(images, Tensor) else images):
        pixels, *rest = batch if isinstance(batch, list | tuple) and batch else [batch]
        _check_images(f"images: batch {number}", pixels)
        if not len(pixels):
            continue
        batches.append(pixels.detach())
        if rest and isinstance(rest[0], Tensor):
            labels.append(rest[0].detach())
            if labels[-1].shape[:1] != pixels.shape[:1]:
                raise MmpError(f"images: batch {number} has {len(pixels)} images with labels {tuple(labels[-1].shape)}")
    if not batches:
        raise MmpError("images is empty; an iterator can be read only once, so pass a list or a DataLoader")
    return batches, labels if len(labels) == len(batches) else []


def _check_images(what: str, pixels: Any) -> None:
    if not isinstance(pixels, Tensor):
        raise MmpError(f"{what} is a {_name(pixels)}; it must be a tensor (B, C, H, W), or a pair (images, labels)")
    if pixels.dim() != 4:
        raise MmpError(f"{what} has the shape {tuple(pixels.shape)}; it must be (B, C, H, W)")
    if not pixels.is_floating_point():
        raise MmpError(f"{what} is of {pixels.dtype}; convert and normalise images as the model was trained on them")
    if not all_finite(pixels.detach()):
        raise MmpError(f"{what} holds NaN or infinity; leave damaged images out, and check the normalisation")


def _read_labels(labels: Labels, in_pairs: list[Tensor], batches: list[Tensor]) -> list[Tensor]:
    """Return labels divided as the images are."""
    if in_pairs:
        raise MmpError("labels are given twice, in pairs with the images and as labels=...; leave one of them out")
    try:
        given = [labels] if isinstance(labels, Tensor) else labels
        parts = [
            torch.atleast_1d(part if isinstance(part, Tensor) else torch.tensor(part, device="cpu")) for part in given
        ]
        joined = torch.cat(parts) if parts else torch.empty(0, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise MmpError(f"labels cannot be read as a tensor (B,), or a list of them: {_text(error)}") from error
    counts = [len(batch) for batch in batches]
    if len(joined) != sum(counts):
        raise MmpError(f"labels has {len(joined)} entries for {sum(counts)} images; pass one label for each image")
    return list(joined.detach().split(counts))


def _check_classes(output: Any, labels: tuple[Tensor, ...], loss: Loss) -> None:
    """Raise if a class label has no output; on a GPU cross-entropy would end the process for it."""
    classes = isinstance(loss, nn.CrossEntropyLoss) or loss is cross_entropy
    if not classes or not isinstance(output, Tensor) or output.dim() != 2 or labels[0].is_floating_point():
        return
    least, most = min(int(part.min()) for part in labels), max(int(part.max()) for part in labels)
    if least < 0 or most >= output.shape[1]:
        raise MmpError(f"labels are from {least} to {most}, but the model has the classes 0 to {output.shape[1] - 1}")


def _name(value: object) -> str:
    return type(value).__name__


def _kind(one: Tensor) -> str:
    return f"{one.dtype} of shape {tuple(one.shape)}"


def _text(error: Exception) -> str:
    return f"{_name(error)}: {' '.join(str(error).split())}"
