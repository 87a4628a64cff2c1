"""Channels that nothing reads: all weights that multiply them are zero."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mmp.pruning.channels.group import ChannelGroup, Part
from mmp.pruning.channels.head_dimensions import PLACES, HeadDimensions
from mmp.pruning.channels.masks import sets_per_step
from mmp.pruning.channels.removal import tensors_of


def may_have_unread(network: nn.Module) -> bool:
    """Return whether a weight of a network has a column of zeros, without which no channel is unread."""
    return any(bool((~_read(nonzero)).any()) for nonzero in _nonzero(network).values())


def unread_sets(network: nn.Module, group: ChannelGroup) -> Tensor:
    """Return the numbers of the sets of a group that nothing reads, int64."""
    return _unread(_nonzero(network), group)


def removable(network: nn.Module, groups: Iterable[ChannelGroup], multiple: int = 1) -> dict[ChannelGroup, Tensor]:
    """Return the numbers of the sets that nothing reads, by group, for the groups that have some.

    A channel that only unread channels read is unread, too. If nothing reads any set of a group, one set stays, since a
    layer needs a channel. Where a larger share of the dimensions of heads is unread than of the heads, the group of
    heads becomes one of dimensions.

    Args:
        network: The network.
        groups: Its groups.
        multiple: Widths of convolutions stay divisible by what they share with it, so some unread sets stay. With 16,
            64 channels can become 48, and 40 can become 32.
    """
    nonzero = _nonzero(network)
    groups = [_arranged(group, nonzero) for group in groups]
    steps = {group: _step(group, nonzero, multiple) for group in groups}
    found: dict[ChannelGroup, Tensor] = {}
    while True:
        now = {group: _unread(nonzero, group) for group in groups}
        now = {group: sets[_stay(len(group), len(sets), steps[group]) :] for group, sets in now.items()}
        if sum(map(len, now.values())) == sum(map(len, found.values())):
            return {group: sets for group, sets in now.items() if len(sets)}
        found = now
        for group, sets in found.items():
            for part, channels in group.channels.items():
                if part.side == "out":
                    nonzero[part.name][channels[sets].flatten()] = False


def _step(group: ChannelGroup, nonzero: dict[str, Tensor], multiple: int) -> int:
    """Return the number of sets that stay or go together."""
    if not any(part.side in ("in", "out") and nonzero[part.name].dim() > 2 for part in group.channels):
        return 1
    widths = [channels.numel() for part, channels in group.channels.items() if part.side == "out"]
    step = sets_per_step(group, math.gcd(multiple, *widths))
    return 1 if len(group) % step else step


def _stay(sets: int, unread: int, step: int) -> int:
    """Return how many unread sets stay, so that a multiple of a step stays, and at least one set."""
    return -max(sets - unread, 1) % step + (unread == sets)


def _nonzero(network: nn.Module) -> dict[str, Tensor]:
    """Return where the weights of a network are not zero, bool on the CPU."""
    tensors = {name: tensor for name, tensor in tensors_of(network).items() if tensor.dim() > 1 and tensor.numel()}
    return {name: tensor.detach().ne(0).cpu() for name, tensor in tensors.items() if tensor.is_floating_point()}


def _arranged(group: ChannelGroup, nonzero: dict[str, Tensor]) -> ChannelGroup:
    """Return the dimensions of a group of heads, unread ones first, if more of them are unread than of the heads."""
    best, most = group, int(_is_unread(nonzero, group, group.readers).sum()) / len(group)
    for dimensions in filter(None, (HeadDimensions.of(group, place) for place in PLACES)):
        read = [~_is_unread(nonzero, strand, dimensions.decisive) for strand in dimensions.strands]
        arranged = dimensions.arranged([each.int() for each in read])
        if (share := len(_unread(nonzero, arranged)) / len(arranged)) > most:
            best, most = arranged, share
    return best


def _unread(nonzero: dict[str, Tensor], group: ChannelGroup) -> Tensor:
    return _is_unread(nonzero, group, group.decisive).nonzero().flatten()


def _is_unread(nonzero: dict[str, Tensor], group: ChannelGroup, decisive: Iterable[Part]) -> Tensor:
    """Return which sets have no weight in the decisive parts that is not zero, bool (sets,)."""
    unread = torch.ones(len(group), dtype=torch.bool, device="cpu")
    for part in (part for part in decisive if part in group.channels):
        used = nonzero[part.name].flatten(1).any(1) if part.side == "out" else _read(nonzero[part.name])
        unread &= ~used[group.channels[part]].any(1)
    return unread


def _read(nonzero: Tensor) -> Tensor:
    """Return which columns of a weight have a value that is not zero."""
    return nonzero.transpose(0, 1).flatten(1).any(1)
