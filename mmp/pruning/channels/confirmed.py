"""Groups of channels whose removal has been tried: some networks do not run without channels that look removable."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mmp.pruning.channels.coupling import channel_groups
from mmp.pruning.channels.group import ChannelGroup
from mmp.pruning.channels.head_dimensions import PLACES, HeadDimensions
from mmp.pruning.channels.probe import randomised
from mmp.pruning.channels.removal import Removal, tensors_of
from mmp.pruning.channels.seeded import seeded
from mmp.pruning.channels.shrink import remove
from mmp.pruning.layers.eval_mode import evaluating
from mmp.pruning.layers.prunable import find_layers

log = logging.getLogger(__name__)

_ASLEEP = 1e-3  # the largest value of a weight or scale that hides its branch


@torch.no_grad()
def confirmed_groups(network: nn.Module, image: Tensor, dimensions: bool = False) -> list[ChannelGroup]:
    """Return the groups of :func:`mmp.pruning.channels.coupling.channel_groups` that can be removed for certain.

    In a copy of the network, nothing reads half of the sets of each group. Groups are left out, with a warning, if the
    network without these sets does not run or computes something else: for instance where the forward pass splits
    channels by numbers of its own.

    Args:
        network: Any network. It is not changed.
        image: One image of the network's real size, (1, C, H, W). Only its shape and data type are used.
        dimensions: Whether the dimensions of attention heads take the place of whole heads, where they can be removed.

    Raises:
        MmpError: if the network does not run on the image.
    """
    with evaluating(network):
        groups, unread = channel_groups(network, image), copy.deepcopy(network)
    tensors = tensors_of(unread)
    chosen = {group: torch.arange(len(group) // 2, device="cpu") for group in groups}
    for group, sets in chosen.items():
        for part in group.readers:
            weight, columns = tensors[part.name], group.channels[part][sets].flatten()
            weight.index_fill_(1, columns.to(weight.device), 0)
    with seeded():
        noise = torch.randn(image.shape, device="cpu").to(next(unread.parameters()).device, image.dtype)
    _, removal = remove(unread, chosen, noise)
    for name, reason in removal.kept.items():
        log.warning("%s: this group of channels is not pruned, since half of it cannot be removed: %s", name, reason)
    found = [group for group in groups if group.name not in removal.kept]
    return _with_dimensions(network, found, image) if dimensions else found


def _with_dimensions(network: nn.Module, groups: Sequence[ChannelGroup], image: Tensor) -> list[ChannelGroup]:
    """Return the groups with the dimensions of heads in place of heads, where half of them can be removed.

    The network that they are removed from has random biases and norms, and no weights or scales near zero. These would
    hide that a network needs the dimension, for instance because it rotates or normalises keys.
    """
    prunable = {layer.name for layer in find_layers(network)}
    with seeded():
        random, noise = _awake(network), torch.randn(image.shape, device="cpu")
        found: dict[ChannelGroup, ChannelGroup] = {}
        for place in PLACES:
            left = (group for group in groups if group not in found)
            made = {group: HeadDimensions.of(group, place) for group in left}
            candidates = {
                group: dimensions
                for group, dimensions in made.items()
                if dimensions and all(part.name in prunable for part in dimensions.decisive)
            }
            removal = _without_half(random, candidates.values(), noise)
            found |= {group: each for group, each in candidates.items() if each.name not in removal.kept}
    for group in groups:
        if group not in found and any(HeadDimensions.of(group, place) for place in PLACES):
            log.warning("%s: whole heads are pruned, since half of their dimensions cannot be removed", group.name)
    return [found.get(group, group) for group in groups]


def _awake(network: nn.Module) -> nn.Module:
    """Return a copy of a network in which no parameter is near zero as a whole, as a branch may start with."""
    random = randomised(network)
    for parameter in random.parameters():
        if parameter.dim() > 1 and parameter.numel() and parameter.abs().max() <= _ASLEEP:
            parameter.copy_(torch.randn_like(parameter) / math.sqrt(parameter[0].numel()))
    return random


def _without_half(network: nn.Module, groups: Iterable[HeadDimensions], noise: Tensor) -> Removal:
    """Remove random dimensions of heads from a network in which nothing reads them."""
    unread = copy.deepcopy(network)
    chosen: dict[ChannelGroup, Tensor] = {}
    tensors = tensors_of(unread)
    for group in groups:
        arranged = group.arranged([torch.rand(len(strand), device="cpu") for strand in group.strands])
        chosen[arranged] = torch.arange(len(group) // 2, device="cpu")
        for part in group.decisive:
            gone = arranged.channels[part][chosen[arranged]].flatten()
            tensors[part.name].index_fill_(0 if part.side == "out" else 1, gone, 0)
    return remove(unread, chosen, noise)[1]
