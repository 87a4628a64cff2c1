"""The structure of a run: single weights, or whole channels, whose groups all runs of an architecture share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from mmp.cache import cached_tensors
from mmp.config.identity import architecture, digest
from mmp.config.objects import build_range_table
from mmp.config.schema import PruneConfig
from mmp.config.source_code import own_source_digest
from mmp.models.networks import stated_input
from mmp.pruning.channels.confirmed import confirmed_groups
from mmp.pruning.channels.group import ChannelGroup, Part
from mmp.pruning.channels.head_dimensions import HeadDimensions
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.layers.prunable import find_layers
from mmp.pruning.patterns import Channels, Pattern
from mmp.pruning.sizes import Sizes
from mmp.pruning.structure import SingleWeights, Structure


def structure_of(config: PruneConfig, model: nn.Module, pattern: Pattern | Channels) -> Structure:
    """Return what a run prunes as a whole.

    With ``pattern=channels``, the groups of channels are read from the cache, or found and written to it. They depend
    on the architecture and the size of the images, but not on the weights.

    Args:
        config: The configuration, for the architecture, the size of the images, and the folder of the cache.
        model: The network. Unless channels are pruned, its weights may be on the ``meta`` device.
        pattern: The pattern of the masks.

    Raises:
        MmpError: if no group of channels can be removed.
    """
    if isinstance(pattern, Pattern):
        layers = find_layers(model)
        return SingleWeights(layers, pattern, Sizes.of(model, layers), sum(p.numel() for p in model.parameters()))
    image = torch.zeros(1, config.model.in_chans, *[image_size(config)] * 2)
    source = own_source_digest("pruning/channels", "pruning/layers", "models")
    dimensions = build_range_table(config.ranges).dimensions
    chosen = [architecture(config.model), list(image.shape), torch.__version__, timm.__version__, source]
    key = digest([*chosen, "attn_dims"] if dimensions else chosen)
    path = Path(config.paths.cache) / "channels" / f"{key[:16]}.safetensors"
    found, _ = cached_tensors(path, lambda: _as_tensors(confirmed_groups(model, image, dimensions)))
    return WholeChannels.of(model, image, pattern, _from_tensors(found))


def image_size(config: PruneConfig) -> int:
    """Return the height and width of the images of a configuration, whose data may be missing in a plan."""
    sizes = [
        config.data and config.data.image_size,
        config.model.kwargs.get("img_size"),
        config.model.image_size,
        stated_input(config.model).image_size,
    ]
    return next((int(size) for size in sizes if isinstance(size, int)), 224)


def _as_tensors(groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Return groups as tensors for a file; the numbers in front keep their order.

    Dimensions of heads are stored as the heads, with the place of the values.
    """
    tensors = {}
    for number, group in enumerate(groups):
        of_heads = group.heads if isinstance(group, HeadDimensions) else None
        stored = of_heads[0] if of_heads else group
        for place, (part, channels) in enumerate(stored.channels.items()):
            how = f"dims{of_heads[1]}" if of_heads else "pass" if part.name in stored.passed else "read"
            tensors[f"{number:05d} {place:05d} {how} {part.side} {part.name}"] = channels
    return tensors or {"none": torch.empty(0)}


def _from_tensors(tensors: Mapping[str, Tensor]) -> list[ChannelGroup]:
    groups: dict[str, dict[Part, Tensor]] = {}
    passed: dict[str, set[str]] = {}
    places: dict[str, int] = {}
    for key in sorted(tensors.keys() - {"none"}):
        number, _, how, side, name = key.split(" ", 4)
        groups.setdefault(number, {})[Part(name, side)] = tensors[key]
        passed.setdefault(number, set()).update({name} if how == "pass" else ())
        if how.startswith("dims"):
            places[number] = int(how.removeprefix("dims"))
    found = {number: ChannelGroup(channels, frozenset(passed[number])) for number, channels in groups.items()}
    dimensions = {number: HeadDimensions.of(found[number], place) for number, place in places.items()}
    return [dimensions.get(number) or group for number, group in found.items()]
