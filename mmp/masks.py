"""Masks: which weights stay. Made exactly, checked, saved, loaded, and enforced (phase 3 of the method)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmp.errors import MmpError
from mmp.files import load_tensors, save_tensors
from mmp.patterns import UNSTRUCTURED, Pattern


class Masks(Mapping[str, Tensor]):
    """A fixed set of masks: weight name -> bool tensor of the weight's shape, True where it is kept.

    Args:
        masks: Masks by the state_dict name of their weight.

    Raises:
        MmpError: if a name is not a non-empty string or a mask is not a bool tensor.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if not isinstance(name, str) or not name:
                raise MmpError(f"a mask needs the name of a weight, not {name!r}")
            if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise MmpError(f"mask {name!r} is {kind}, but a mask is a bool tensor")
        self._masks = dict(masks)

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, sparsity {self.sparsity:.4f})"

    @property
    def total(self) -> int:
        """Number of weights under a mask."""
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def pruned(self) -> dict[str, int]:
        """Number of pruned weights of every layer."""
        return {name: mask.numel() - int(mask.count_nonzero()) for name, mask in self._masks.items()}

    @property
    def sparsity(self) -> float:
        """Pruned weights / weights of all layers."""
        return sum(self.pruned.values()) / max(self.total, 1)

    def digest(self) -> str:
        """Return a SHA-256 over names, shapes and bits: equal exactly when the masks are equal."""
        sha = hashlib.sha256()
        for name in sorted(self._masks):
            mask = self._masks[name]
            sha.update(f"{name}{tuple(mask.shape)}".encode())
            sha.update(np.packbits(mask.cpu().numpy()).tobytes())
        return sha.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masks) and self.digest() == other.digest()

    __hash__ = None  # type: ignore[assignment]

    def contains(self, other: Masks) -> bool:
        """Return whether everything that ``other`` prunes is pruned here too."""
        return self.keys() == other.keys() and all(not (self[n] & ~other[n]).any() for n in self)


def keep_highest(scores: Tensor, pruned: int) -> Tensor:
    """Return a bool mask that drops exactly the ``pruned`` lowest scores.

    Equal scores are ordered by flat index, the lower index goes first, so the mask depends on nothing else.

    Args:
        scores: Tensor of any shape, finite.
        pruned: How many to drop, from 0 to ``scores.numel()``.

    Raises:
        MmpError: if a score is not finite, or the number is out of bounds.
    """
    flat = scores.detach().flatten()
    if not 0 <= pruned <= flat.numel():
        raise MmpError(f"cannot prune {pruned} of {flat.numel()} weights")
    _require_finite(flat)
    keep = torch.ones_like(flat, dtype=torch.bool)
    if pruned:
        threshold = torch.kthvalue(flat, pruned).values
        keep = flat > threshold
        tied = (flat == threshold).nonzero().flatten()
        spared = flat.numel() - int(keep.count_nonzero()) - pruned
        if spared:
            keep[tied[-spared:]] = True
    return keep.view(scores.shape)


def _require_finite(scores: Tensor) -> None:
    if not torch.isfinite(scores).all():
        raise MmpError("scores hold NaN or infinity; check the weights and the calibration data")


def keep_patterned(scores: Tensor, pruned: int, pattern: Pattern) -> Tensor:
    """Return a bool mask that drops the lowest scores so that a pattern holds, or comes to hold as more are dropped.

    Blocks are ordered by the sum of their scores. First go those that the pattern takes whatever the sparsity: of
    every M neighbours the M - N lowest; then all others. So masks for rising numbers contain each other, and once the
    pattern holds, no mask that satisfies it and prunes as many keeps higher scores. Equal sums go by flat index.

    Args:
        scores: (outputs, inputs, kernel...), finite, of a shape that the pattern fits.
        pruned: How many weights to drop; rounded down to whole blocks.
        pattern: The pattern.

    Raises:
        MmpError: if a score is not finite, or the number is out of bounds.
    """
    _require_finite(scores)
    parts = _parts(scores.detach(), pattern)
    blocks = parts.sum((1, 4), dtype=torch.float64)
    lowest = blocks.argsort(dim=2, stable=True)[:, :, : max(0, pattern.of - pattern.kept)]
    first = torch.zeros_like(blocks, dtype=torch.bool).scatter_(2, lowest, True)
    count, most = pruned // pattern.unit, int(first.count_nonzero())
    keep = torch.ones_like(first)
    keep[first] = keep_highest(blocks[first], min(count, most))
    keep[~first] = keep_highest(blocks[~first], max(0, count - most))
    return keep[:, None, :, :, None].expand_as(parts).reshape(scores.shape)


def satisfies(mask: Tensor, pattern: Pattern, groups: int = 1) -> bool:
    """Return whether a mask (outputs, inputs, kernel...) has a pattern; one that the pattern does not fit has not."""
    if not pattern.fits(mask.shape, groups):
        return False
    parts = _parts(mask, pattern)
    blocks = parts.all(4).all(1)
    return torch.equal(blocks, parts.any(4).any(1)) and bool((blocks.sum(2) <= pattern.kept).all())


def _parts(values: Tensor, pattern: Pattern) -> Tensor:
    """View a layer as (outputs / R, R, groups, M, C, kernel...): M neighbouring blocks of R outputs by C inputs."""
    outputs, inputs, *kernel = values.shape
    groups = inputs // (pattern.of * pattern.columns)
    return values.reshape(outputs // pattern.rows, pattern.rows, groups, pattern.of, pattern.columns, *kernel)


def pruned_count(sparsity: float, total: int) -> int:
    """Return floor(sparsity * total), the exact number of weights that a layer loses.

    Raises:
        MmpError: if the sparsity is outside [0, 1].
    """
    if not 0.0 <= sparsity <= 1.0:
        raise MmpError(f"sparsity {sparsity} is outside [0, 1]")
    return math.floor(sparsity * total)


def make_masks(
    scores: Mapping[str, Tensor],
    sparsities: Mapping[str, float],
    pattern: Pattern = UNSTRUCTURED,
    fraction: float = 1.0,
    groups: Mapping[str, int] | None = None,
) -> Masks:
    """Return masks that prune floor(sparsity * n) lowest-scored weights in each layer.

    Args:
        scores: One tensor per layer, of the weight's shape; higher is more important.
        sparsities: One fraction per layer; the same names.
        pattern: What the masks of layers that take it (:meth:`Pattern.takes`) satisfy. With blocks as many whole ones
            go as are in floor(sparsity * n) weights.
        fraction: Share of all sparsities that is in force, for a ramp. Masks of lower fractions prune parts of what
            those of higher ones do; the pattern holds from 1 on.
        groups: Groups of each convolution that has more than one, which blocks stay within.

    Raises:
        MmpError: if the names differ, a sparsity is outside [0, 1] or a score is not finite.
    """
    if scores.keys() != sparsities.keys():
        odd = sorted(scores.keys() ^ sparsities.keys())
        raise MmpError(f"scores and sparsities name different layers: {', '.join(odd[:5])}")
    masks = {}
    for name, score in scores.items():
        try:
            pruned = pruned_count(fraction * sparsities[name], score.numel())
            patterned = pattern != UNSTRUCTURED and pattern.takes(
                score.shape, sparsities[name], (groups or {}).get(name, 1)
            )
            masks[name] = keep_patterned(score, pruned, pattern) if patterned else keep_highest(score, pruned)
        except MmpError as error:
            raise MmpError(f"layer {name!r}: {error}") from error
    return Masks(masks)


def save_masks(masks: Masks, path: Path) -> None:
    """Write masks to a safetensors file: one bool tensor per weight name, True where kept."""
    save_tensors(path, dict(masks))


def load_masks(path: Path) -> Masks:
    """Read what :func:`save_masks` wrote.

    Raises:
        MmpError: if the file is missing, truncated or altered.
    """
    return Masks(load_tensors(path))


class MaskEnforcer:
    """Keeps pruned weights at exactly zero while a model trains.

    The weights are zeroed in a post-hook of ``optimizer.step()``, so nothing that runs after a step (a
    checkpoint, a validation, an average of weights) ever sees a pruned weight alive, whatever momentum, weight
    decay, gradient accumulation or a gradient scaler did. The model is not reparametrised.

    Args:
        parameters: Live parameters by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._pruned: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self.masks: Masks | None = None

    def set(self, masks: Masks, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Put masks in force: zero the pruned weights and, once, what optimizers remember of them.

        Args:
            masks: Masks for some or all of the parameters.
            optimizers: Optimizers whose state (momentum, second moments) is zeroed at pruned weights.

        Raises:
            MmpError: if a mask names an unknown parameter or has another shape.
        """
        for name, mask in masks.items():
            if name not in self._parameters:
                raise MmpError(f"mask {name!r} names no weight of this model; was it made for another one?")
            shape = tuple(self._parameters[name].shape)
            if tuple(mask.shape) != shape:
                raise MmpError(f"mask {name!r} has shape {tuple(mask.shape)}, its weight has {shape}")
        self.masks = masks
        self._pruned = {name: ~mask.to(self._parameters[name].device) for name, mask in masks.items()}
        self.zero_weights()
        for optimizer in optimizers:
            for name, pruned in self._pruned.items():
                for value in optimizer.state.get(self._parameters[name], {}).values():
                    if isinstance(value, Tensor) and value.shape == pruned.shape:
                        value.masked_fill_(pruned, 0)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero pruned weights after every step of this optimizer, until :meth:`detach`."""
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self.zero_weights()))

    def detach(self) -> None:
        """Remove every hook."""
        while self._handles:
            self._handles.pop().remove()

    @torch.no_grad()
    def zero_weights(self) -> None:
        """Set pruned weights to +0.0."""
        for name, pruned in self._pruned.items():
            self._parameters[name].masked_fill_(pruned, 0)

    def zero_gradients(self) -> None:
        """Set the gradients of pruned weights to zero, so that gradient norms ignore them."""
        for name, pruned in self._pruned.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(pruned, 0)

    def check(self) -> None:
        """Raise if a pruned weight is not exactly zero.

        Raises:
            MmpError: naming the weight and how many of its entries came back to life.
        """
        check_zeros(self._parameters, self.masks or Masks({}))


def check_zeros(weights: Mapping[str, Tensor], masks: Masks) -> None:
    """Raise unless every pruned weight is exactly 0.0.

    Args:
        weights: Weights by name, for instance a state_dict.
        masks: Masks of some of them.

    Raises:
        MmpError: naming the first weight with a pruned entry that is not zero, or a mask that belongs to no weight.
    """
    for name, mask in masks.items():
        if name not in weights:
            raise MmpError(f"mask {name!r} names no weight of this model; was it made for another one?")
        if mask.shape != weights[name].shape:
            raise MmpError(f"mask {name!r} has shape {tuple(mask.shape)}, its weight has {tuple(weights[name].shape)}")
        alive = int((weights[name].detach() != 0)[~mask.to(weights[name].device)].count_nonzero())
        if alive:
            raise MmpError(f"{alive} pruned weights of {name!r} are not zero; something wrote to them")
