"""Masks: which weights a pruned model keeps, and how they are enforced while it trains (docs/method.md, phase 3)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmp.errors import MmpError
from mmp.pruning.counts import pruned_count
from mmp.pruning.patterns import UNSTRUCTURED, Pattern, WeightShape
from mmp.pruning.topk import keep_highest_each, keep_patterned
from mmp.tensors import load_tensors, save_tensors

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per element


class Masks(Mapping[str, Tensor]):
    """An immutable mapping from weight names to masks: bool tensors of the weight's shape, True where it is kept.

    Args:
        masks: Masks by the ``state_dict`` key of their weight.

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
        """Number of weights that have a mask."""
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def pruned(self) -> dict[str, int]:
        """Number of pruned weights of every layer, by name."""
        return {name: mask.numel() - int(mask.count_nonzero()) for name, mask in self._masks.items()}

    @property
    def sparsity(self) -> float:
        """Pruned weights of all layers divided by their weights, in [0, 1]."""
        return sum(self.pruned.values()) / max(self.total, 1)

    def digest(self) -> str:
        """Return a SHA-256 over names, shapes and bits; two digests are equal if and only if the masks are."""
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
        """Return whether both have the same names and every weight that ``other`` prunes is pruned here, too."""
        return self.keys() == other.keys() and all(not (self[n] & ~other[n]).any() for n in self)

    def require_fit(self, weights: Mapping[str, Tensor]) -> None:
        """Raise unless every mask has a weight of its name and shape.

        Args:
            weights: The model's weights by name, for instance its ``state_dict``.

        Raises:
            MmpError: naming the first mask that does not fit.
        """
        for name, mask in self._masks.items():
            if name not in weights:
                raise MmpError(f"mask {name!r} names no weight of this model; use masks that were made for it")
            shape = tuple(weights[name].shape)
            if tuple(mask.shape) != shape:
                raise MmpError(
                    f"mask {name!r} has shape {tuple(mask.shape)}, its weight has {shape}; use masks that were made "
                    "for this model"
                )


def make_masks(
    scores: Mapping[str, Tensor],
    sparsities: Mapping[str, float],
    pattern: Pattern = UNSTRUCTURED,
    fraction: float = 1.0,
    groups: Mapping[str, int] | None = None,
) -> Masks:
    """Return masks that prune the floor(sparsity * n) lowest-scored weights of each layer of n weights.

    Of equal scores, lower flat indices are pruned first.

    Args:
        scores: One tensor per layer, by name, of the weight's shape; higher is more important.
        sparsities: One fraction per layer, by the same names.
        pattern: Pattern of the masks, in every layer that takes it (:meth:`Pattern.takes`). With a pattern of blocks,
            floor(sparsity * n) is rounded down to whole blocks.
        fraction: Multiplies all sparsities, for a schedule. The masks of a higher fraction prune all weights that those
            of a lower one prune, and more. The pattern holds at fraction 1.
        groups: Groups of the convolutions that have more than one, by name; no block crosses from one into the next.

    Raises:
        MmpError: if the names differ, a sparsity is outside [0, 1] or a score is not finite.

    Example:
        >>> import torch
        >>> scores = {"fc.weight": torch.tensor([[0.1, 0.4], [0.3, 0.2]])}
        >>> masks = make_masks(scores, {"fc.weight": 0.5})
        >>> masks
        Masks(1 layers, sparsity 0.5000)
        >>> masks["fc.weight"]
        tensor([[False,  True],
                [ True, False]])
    """
    return make_grid(scores, {"": sparsities}, pattern, fraction, groups)[""]


def make_grid(
    scores: Mapping[str, Tensor],
    strategies: Mapping[str, Mapping[str, float]],
    pattern: Pattern = UNSTRUCTURED,
    fraction: float = 1.0,
    groups: Mapping[str, int] | None = None,
) -> dict[str, Masks]:
    """Return the masks of several strategies: as :func:`make_masks` for each, but the scores are read only once.

    Args:
        scores: One tensor per layer, by name, of the weight's shape; higher is more important.
        strategies: One fraction per layer, by strategy and by layer name.
        pattern: As in :func:`make_masks`.
        fraction: As in :func:`make_masks`.
        groups: As in :func:`make_masks`.

    Raises:
        MmpError: if the names of layers differ, a sparsity is outside [0, 1] or a score is not finite.

    Example:
        >>> import torch
        >>> scores = {"fc.weight": torch.tensor([[0.1, 0.4], [0.3, 0.2]])}
        >>> grid = make_grid(scores, {"p50": {"fc.weight": 0.5}, "p90": {"fc.weight": 0.9}})
        >>> {name: masks.pruned for name, masks in grid.items()}
        {'p50': {'fc.weight': 2}, 'p90': {'fc.weight': 3}}
    """
    for sparsities in strategies.values():
        if scores.keys() != sparsities.keys():
            odd = sorted(scores.keys() ^ sparsities.keys())
            raise MmpError(
                f"scores and sparsities name different layers: {', '.join(odd[:5])}; both need one entry per layer"
            )
    masks: dict[str, dict[str, Tensor]] = {strategy: {} for strategy in strategies}
    for name, score in scores.items():
        wanted = [sparsities[name] for sparsities in strategies.values()]
        weight = WeightShape(score.shape, (groups or {}).get(name, 1))
        try:
            counts = [pruned_count(fraction * sparsity, score.numel()) for sparsity in wanted]
            patterned = [pattern != UNSTRUCTURED and pattern.takes(weight, sparsity) for sparsity in wanted]
            freely = [count for count, takes in zip(counts, patterned, strict=True) if not takes]
            free = iter(keep_highest_each(score, freely))
            for strategy, count, takes in zip(strategies, counts, patterned, strict=True):
                masks[strategy][name] = keep_patterned(score, count, pattern) if takes else next(free)
        except MmpError as error:
            raise MmpError(f"layer {name!r}: {error}") from error
    return {strategy: Masks(layers) for strategy, layers in masks.items()}


def save_masks(masks: Masks, path: Path) -> None:
    """Write masks to a safetensors file: one bool tensor per weight name, True where kept.

    Args:
        masks: The masks.
        path: The file; written atomically, with a checksum.

    Raises:
        MmpError: if the file cannot be written.
    """
    save_tensors(path, dict(masks))


def load_masks(path: Path) -> Masks:
    """Read masks from a file of :func:`save_masks`.

    Raises:
        MmpError: if the file is missing, truncated or altered.
    """
    return Masks(load_tensors(path))


class MaskEnforcer:
    """Keeps pruned weights at exactly zero while a model trains.

    A post-hook of ``optimizer.step()`` zeroes the weights, so code that runs after a step (a checkpoint, a validation,
    an average of weights) always sees zeros, with any momentum, weight decay, gradient accumulation or gradient scaler.
    The model is not reparametrised: its modules, parameters and ``state_dict`` keys stay the same.

    Args:
        parameters: The model's own parameters, by name.

    Attributes:
        masks: The current masks; None before :meth:`set`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> enforcer = MaskEnforcer(dict(layer.named_parameters()))
        >>> enforcer.set(Masks({"weight": torch.tensor([[True, False], [False, True]])}), [optimizer])
        >>> enforcer.attach(optimizer)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> (layer.weight == 0).tolist()
        [[False, True], [True, False]]
        >>> enforcer.check()
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._kept: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self.masks: Masks | None = None

    def set(self, masks: Masks, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Set the masks, and zero the pruned weights and the optimizers' state at them.

        The masks replace the masks of an earlier call.

        Args:
            masks: Masks of some or all of the parameters.
            optimizers: Optimizers whose state (momentum, second moments) is zeroed once at the pruned weights.

        Raises:
            MmpError: if a mask names an unknown parameter or has another shape.
        """
        masks.require_fit(self._parameters)
        self.masks = masks
        self._kept = {name: _integers(mask, self._parameters[name]) for name, mask in masks.items()}
        self.zero_weights()
        for optimizer in optimizers:
            for name, kept in self._kept.items():
                for value in optimizer.state.get(self._parameters[name], {}).values():
                    if isinstance(value, Tensor) and value.shape == kept.shape:
                        value.masked_fill_(kept == 0, 0)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero the pruned weights after every step of an optimizer, until :meth:`detach`."""
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self.zero_weights()))

    def detach(self) -> None:
        """Remove the hooks of :meth:`attach` from all optimizers."""
        while self._handles:
            self._handles.pop().remove()

    def zero_weights(self) -> None:
        """Set the pruned weights to +0.0."""
        _zero([self._parameters[name] for name in self._kept], list(self._kept.values()))

    def zero_gradients(self) -> None:
        """Set the gradients of pruned weights to zero, so that gradient norms ignore them."""
        every = {name: self._parameters[name].grad for name in self._kept}
        gradients = {name: gradient for name, gradient in every.items() if gradient is not None}
        _zero(list(gradients.values()), [self._kept[name] for name in gradients])

    def check(self) -> None:
        """Raise if a pruned weight is not exactly zero.

        Raises:
            MmpError: naming the weight and the number of its entries that are not zero.
        """
        check_zeros(self._parameters, self.masks or Masks({}))


def _integers(mask: Tensor, weight: Tensor) -> Tensor:
    """Return a mask as integers 0 and 1 of the weight's width, on its device and in its memory format."""
    return torch.empty_like(weight, dtype=INTEGERS[weight.element_size()], requires_grad=False).copy_(mask)


@torch.no_grad()
def _zero(values: list[Tensor], kept: list[Tensor]) -> None:
    """Set values to +0.0 where ``kept`` is 0, and leave them where it is 1, in one fused operation for all tensors.

    The bit patterns are multiplied as integers: a product of floating-point numbers would turn negative numbers into
    -0.0 and infinities into NaN, and torch has no fused ``masked_fill_``.
    """
    if values:
        torch._foreach_mul_([value.view(kind.dtype) for value, kind in zip(values, kept, strict=True)], kept)


@torch.no_grad()
def clear_pruned(weights: Mapping[str, Tensor], masks: Masks) -> None:
    """Set pruned weights to +0.0, in place; a product such as ``weight * mask`` leaves -0.0 at negative weights.

    Args:
        weights: Weights by name, for instance a ``state_dict``.
        masks: Masks of some of them.

    Raises:
        MmpError: naming the first mask that fits no weight.
    """
    masks.require_fit(weights)
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask.to(weights[name].device), 0)


def check_zeros(weights: Mapping[str, Tensor], masks: Masks) -> None:
    """Raise unless every pruned weight is exactly zero, of either sign.

    Args:
        weights: Weights by name, for instance a ``state_dict``.
        masks: Masks of some of them.

    Raises:
        MmpError: naming the first mask that fits no weight, or the first weight with a pruned entry that is not zero.
    """
    masks.require_fit(weights)
    for name, mask in masks.items():
        wrong = int((weights[name].detach() != 0)[~mask.to(weights[name].device)].count_nonzero())
        if wrong:
            raise MmpError(
                f"{wrong} pruned weights of {name!r} are not zero; apply the masks again after anything that writes to "
                "the weights"
            )
