"""The record of one prunable layer. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

ROLES: tuple[str, ...] = (
    "stem",
    "patch_embed",
    "patch_merge",
    "downsample",
    "conv",
    "depthwise",
    "attn_qkv",
    "attn_proj",
    "mlp_fc1",
    "mlp_fc2",
    "classifier",
    "other",
)
GROUP_ROLES: tuple[str, ...] = (
    "mlp_hidden",
    "conv_inner",
    "attn_heads",
    "attn_dims",
    "stage_width",
)


@dataclass(frozen=True)
class Layer:
    """One weight tensor that may be pruned, or a group of coupled channels that stands in its place.

    A group has the name, module, stage and depth of the first weight that writes its channels.

    Attributes:
        name: The weight's ``state_dict`` key, such as ``layer1.0.conv1.weight``. A weight that several modules share
            is one layer, under the first of its names that belongs to a prunable module.
        module: Dotted path of the module that owns it; empty if that is the model itself.
        role: One of `ROLES`, or of `GROUP_ROLES` for a group of channels (:mod:`mmp.pruning.channels.roles`).
        stage: Stage of the architecture, from 0; None if the architecture has no stages, and for stems, patch
            embeddings and classifiers, which are outside the stages.
        depth: Position among the model's n prunable layers, i / (n - 1), in [0, 1]; 0 for an only layer.
        shape: Shape of the tensor, (outputs, inputs per group, kernel...); of a group, (sets, weights of one set).
        groups: Groups of a convolution: outputs of one group see only the inputs of the same group.
    """

    name: str
    module: str
    role: str
    stage: int | None
    depth: float
    shape: tuple[int, ...]
    groups: int = 1

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def count_weights(layers: Iterable[Layer]) -> int:
    """Return the number of weights of several layers."""
    return sum(layer.size for layer in layers)


def groups_of(layers: Iterable[Layer]) -> dict[str, int]:
    """Return the number of groups of every layer, by name, as functions that make masks take it."""
    return {layer.name: layer.groups for layer in layers}
