"""Sizes on disk: of a dense model, and of a pruned one that stores its kept weights and its masks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmp.pruning.layers.layer import Layer, count_weights

if TYPE_CHECKING:
    from torch import nn


MEGABYTE = 10**6


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's tensors; a file's header adds about a hundred bytes per tensor.

    Attributes:
        weights: Number of prunable weights.
        width: Bytes of one prunable weight.
        masks: Bytes of a mask over all prunable weights: one bit each, every layer rounded up to whole bytes.
        others: Bytes of all other tensors in the state_dict: biases, norms, tables, running statistics.
    """

    weights: int
    width: int
    masks: int
    others: int

    @classmethod
    def of(cls, model: nn.Module, layers: Iterable[Layer]) -> Sizes:
        """Measure a model. A tensor with several names counts once.

        Args:
            model: The network, on any device, ``meta`` included.
            layers: Its prunable layers.
        """
        layers = tuple(layers)
        names = {layer.name for layer in layers}
        saved = model.state_dict(keep_vars=True)
        prunable = {id(saved[name]): saved[name] for name in names}
        others = {id(tensor): tensor for tensor in saved.values() if id(tensor) not in prunable}
        return cls(
            weights=count_weights(layers),
            width=max(tensor.element_size() for tensor in prunable.values()),
            masks=sum(-(-layer.size // 8) for layer in layers),
            others=sum(tensor.numel() * tensor.element_size() for tensor in others.values()),
        )

    @property
    def dense(self) -> int:
        """Bytes of the dense model."""
        return self.others + self.weights * self.width

    def sparse(self, pruned: int) -> int:
        """Return the bytes of the pruned model: kept weights, one mask bit per prunable weight, all other tensors.

        Args:
            pruned: Number of pruned weights.
        """
        return self.others + self.masks + (self.weights - pruned) * self.width

    def sparsity_for(self, size: float) -> float:
        """Return the lowest global sparsity at which the pruned model has at most ``size`` bytes.

        The result is outside [0, 1] if no mask makes the model that small, or if every mask leaves it smaller.
        """
        kept = (size - self.others - self.masks) // self.width
        return (self.weights - kept) / self.weights
