"""Masks: which weights stay. Made exactly, checked, saved, loaded, and enforced (phase 3 of the method)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmp.errors import MmpError
from mmp.pruning.patterns import UNSTRUCTURED, Pattern
from mmp.pruning.topk import keep_highest_each, keep_patterned, pruned_count
from mmp.tensors import load_tensors, save_tensors

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element


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
    return make_grid(scores, {"": sparsities}, pattern, fraction, groups)[""]


def make_grid(
    scores: Mapping[str, Tensor],
    strategies: Mapping[str, Mapping[str, float]],
    pattern: Pattern = UNSTRUCTURED,
    fraction: float = 1.0,
    groups: Mapping[str, int] | None = None,
) -> dict[str, Masks]:
    """Return the masks of several strategies, each that of :func:`make_masks`, from one look at the scores.

    Args:
        scores: One tensor per layer, of the weight's shape; higher is more important.
        strategies: For each strategy, by its name, one fraction per layer.
        pattern: As in :func:`make_masks`.
        fraction: As in :func:`make_masks`.
        groups: As in :func:`make_masks`.

    Raises:
        MmpError: if the names of layers differ, a sparsity is outside [0, 1] or a score is not finite.
    """
    for sparsities in strategies.values():
        if scores.keys() != sparsities.keys():
            odd = sorted(scores.keys() ^ sparsities.keys())
            raise MmpError(f"scores and sparsities name different layers: {', '.join(odd[:5])}")
    masks: dict[str, dict[str, Tensor]] = {strategy: {} for strategy in strategies}
    for name, score in scores.items():
        wanted = [sparsities[name] for sparsities in strategies.values()]
        try:
            counts = [pruned_count(fraction * sparsity, score.numel()) for sparsity in wanted]
            patterned = [
                pattern != UNSTRUCTURED and pattern.takes(score.shape, sparsity, (groups or {}).get(name, 1))
                for sparsity in wanted
            ]
            freely = [count for count, is_so in zip(counts, patterned, strict=True) if not is_so]
            free = iter(keep_highest_each(score, freely))
            for strategy, count, is_so in zip(strategies, counts, patterned, strict=True):
                masks[strategy][name] = keep_patterned(score, count, pattern) if is_so else next(free)
        except MmpError as error:
            raise MmpError(f"layer {name!r}: {error}") from error
    return {strategy: Masks(layers) for strategy, layers in masks.items()}


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
        self._kept: dict[str, Tensor] = {}
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
        self._kept = {name: _integers(mask, self._parameters[name]) for name, mask in masks.items()}
        self.zero_weights()
        for optimizer in optimizers:
            for name, kept in self._kept.items():
                for value in optimizer.state.get(self._parameters[name], {}).values():
                    if isinstance(value, Tensor) and value.shape == kept.shape:
                        value.masked_fill_(kept == 0, 0)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero pruned weights after every step of this optimizer, until :meth:`detach`."""
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self.zero_weights()))

    def detach(self) -> None:
        """Remove every hook."""
        while self._handles:
            self._handles.pop().remove()

    def zero_weights(self) -> None:
        """Set pruned weights to +0.0."""
        _zero([self._parameters[name] for name in self._kept], list(self._kept.values()))

    def zero_gradients(self) -> None:
        """Set the gradients of pruned weights to zero, so that gradient norms ignore them."""
        gradients = {name: self._parameters[name].grad for name in self._kept}
        there = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        _zero(list(there.values()), [self._kept[name] for name in there])

    def check(self) -> None:
        """Raise if a pruned weight is not exactly zero.

        Raises:
            MmpError: naming the weight and how many of its entries came back to life.
        """
        check_zeros(self._parameters, self.masks or Masks({}))


def _integers(mask: Tensor, weight: Tensor) -> Tensor:
    """Return a mask as 0 and 1 in integers of the weight's width, where and how the weight lies."""
    return torch.empty_like(weight, dtype=INTEGERS[weight.element_size()], requires_grad=False).copy_(mask)


@torch.no_grad()
def _zero(values: list[Tensor], kept: list[Tensor]) -> None:
    """Set values to +0.0 where ``kept`` is 0, leave them where it is 1.

    Their bits are multiplied: a product of floating-point numbers would make -0.0, and NaN of infinity; and there is no
    fused operation that fills by mask.
    """
    if values:
        torch._foreach_mul_([value.view(kind.dtype) for value, kind in zip(values, kept, strict=True)], kept)


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
