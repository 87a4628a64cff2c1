"""Sizes on disk: what a model needs dense, and what its kept weights and masks need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from mmp.pruning.layers.layer import Layer


MEGABYTE = 10**6


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's tensors; a file's header, about a hundred bytes a tensor, comes on top.

    Attributes:
        weights: Number of prunable weights.
        width: Bytes of one of them.
        masks: Bytes of a mask over all of them, one bit each, every layer rounded up to whole bytes.
        others: Bytes of everything else that is saved: biases, norms, tables, running statistics.
    """

    weights: int
    width: int
    masks: int
    others: int

    @classmethod
    def of(cls, model: nn.Module, layers: Iterable[Layer]) -> Sizes:
        """Measure a model, on whatever device it is; a tensor that several names share counts once."""
        layers = tuple(layers)
        names = {layer.name for layer in layers}
        saved = model.state_dict(keep_vars=True)
        prunable = {id(saved[name]): saved[name] for name in names}
        others = {id(tensor): tensor for tensor in saved.values() if id(tensor) not in prunable}
        return cls(
            weights=sum(layer.size for layer in layers),
            width=max(tensor.element_size() for tensor in prunable.values()),
            masks=sum(-(-layer.size // 8) for layer in layers),
            others=sum(tensor.numel() * tensor.element_size() for tensor in others.values()),
        )

    @property
    def dense(self) -> int:
        """Bytes of the dense model."""
        return self.others + self.weights * self.width

    def sparse(self, pruned: int) -> int:
        """Return the bytes of the kept weights, the masks that say where they belong, and everything else."""
        return self.others + self.masks + (self.weights - pruned) * self.width

    def sparsity_for(self, size: float) -> float:
        """Return the least global sparsity at which the model needs at most ``size`` bytes; it may be impossible."""
        kept = (size - self.others - self.masks) // self.width
        return (self.weights - kept) / self.weights
