"""Roles of groups of channels: what a group is in its architecture, so that ranges can name it as they name layers.

| role | channels |
| --- | --- |
| ``mlp_hidden`` | hidden units of an MLP, gated or not |
| ``conv_inner`` | channels between two convolutions of a block, with a depthwise convolution and a gate between them |
| ``attn_heads`` | attention heads |
| ``attn_dims`` | dimensions of attention heads |
| ``stage_width`` | channels that several blocks add to, as in a stage of a residual network |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmp.pruning.channels.group import ChannelGroup
from mmp.pruning.channels.head_dimensions import HeadDimensions
from mmp.pruning.channels.masks import weights_per_set
from mmp.pruning.layers.layer import Layer

_ATTENTION = frozenset({"attn_qkv", "attn_proj"})


def group_layers(
    groups: Sequence[ChannelGroup], layers: Sequence[Layer], positions: Mapping[str, int]
) -> tuple[Layer, ...]:
    """Return a layer record for each group, with the role of its channels.

    Args:
        groups: The groups of a network.
        layers: Its prunable layers.
        positions: The number of positions at which each weight is applied to one image, by name.
    """
    by_name = {layer.name: layer for layer in layers}
    found = []
    for group in groups:
        first = next(by_name[part.name] for part in (group.writer, *group.channels) if part.name in by_name)
        size = weights_per_set(group, {layer.name: layer.shape for layer in layers})
        role = _role(group, by_name, positions)
        found.append(Layer(group.name, first.module, role, first.stage, first.depth, (len(group), size)))
    return tuple(found)


def _role(group: ChannelGroup, layers: Mapping[str, Layer], positions: Mapping[str, int]) -> str:
    if isinstance(group, HeadDimensions):
        return "attn_dims"
    roles = {layers[part.name].role for part in group.channels if part.name in layers}
    writers = [part for part in group.channels if part.side == "out" and part.name not in group.passed]
    if roles & _ATTENTION and any(layers[part.name].role == "attn_qkv" for part in writers if part.name in layers):
        return "attn_heads"
    most = max((positions.get(part.name, 0) for part in writers), default=0)
    # A gate has one position for the whole image. The halves of a gated MLP are layers of the same module.
    blocks = {_parent(part.name) for part in writers if positions.get(part.name, 0) == most}
    if len(blocks) > 1:
        return "stage_width"
    written = [layers[part.name] for part in writers if part.name in layers]
    is_conv = any(len(layer.shape) > 2 and not layer.role.startswith("mlp") for layer in written)
    return "conv_inner" if is_conv else "mlp_hidden"


def _parent(weight: str) -> str:
    """Return the path of the module around the layer that owns a weight."""
    return weight.rpartition(".")[0].rpartition(".")[0]
