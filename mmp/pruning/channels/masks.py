"""Masks of whole channels: ordinary masks whose rows and columns are kept or pruned as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmp.errors import MmpError, nearest
from mmp.pruning.channels.group import ChannelGroup, Part
from mmp.pruning.counts import pruned_count
from mmp.pruning.masks import Masks
from mmp.pruning.patterns import MULTIPLE
from mmp.pruning.topk import keep_highest


def channel_masks(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    sparsities: Mapping[str, float],
    multiple: int = MULTIPLE,
) -> Masks:
    """Return masks that prune whole channels: the rows that write them and the columns that read them.

    Of a group of n sets of coupled channels, the floor(sparsity * n) sets with the lowest scores are pruned, or fewer,
    so that every layer keeps a multiple of channels. The score of a set is the sum of the scores of its weights. Masks
    for ascending sparsities contain each other. :func:`mmp.pruning.channels.shrink.shrink` then makes the network
    smaller.

    Args:
        groups: The groups of a network, from :func:`mmp.pruning.channels.coupling.channel_groups`.
        scores: One tensor for each prunable weight, by name, of its shape; higher is more important.
        sparsities: The share of its sets that a group loses, by the group's name. Groups without one stay as they are.
        multiple: The number of channels that a layer keeps is divisible by it. A narrower layer is not pruned.

    Raises:
        MmpError: if a sparsity is for no group or outside [0, 1], if scores are missing or do not fit a group, or if
            the multiple is no whole number of at least 1.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mmp.pruning.channels.coupling import channel_groups
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = channel_groups(network, torch.randn(1, 4))
        >>> scores = {name: p.detach().abs() for name, p in network.named_parameters() if p.dim() > 1}
        >>> masks = channel_masks(groups, scores, {"0.weight": 0.5}, multiple=2)
        >>> [int(mask.count_nonzero()) for mask in masks.values()]
        [16, 8]
    """
    require_multiple(multiple)
    names = [group.name for group in groups]
    for name in sparsities:
        if name not in names:
            raise MmpError(f"sparsities: {name!r} is no group of channels; {nearest(name, names)}")
    chosen = [group for group in groups if group.name in sparsities]
    for group in chosen:
        _require_scores(group, scores)
    of_sets = {group.name: set_scores(group, scores) for group in chosen}
    kept = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    return masks_of_sets(chosen, kept, of_sets, sparsities, multiple)


def masks_of_sets(
    groups: Sequence[ChannelGroup],
    kept: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    sparsities: Mapping[str, float],
    multiple: int = MULTIPLE,
) -> Masks:
    """Return masks as :func:`channel_masks` does, from one score for each set of channels.

    Args:
        groups: The groups.
        kept: A mask of ones for every prunable weight, by name. It is changed.
        scores: The scores of the sets, (sets,), by the group's name; higher is more important. Of a group with several
            strands, those of each strand's sets, one strand after the other.
        sparsities: The share of its sets that each group loses, by the group's name.
        multiple: The number of channels that a layer keeps is divisible by it.

    Raises:
        MmpError: if a score is not finite, or a sparsity is outside [0, 1].
    """
    for group in groups:
        pruned = pruned_sets(group, sparsities[group.name], multiple)
        for strand, score in zip(group.strands, of_strands(group, scores[group.name]), strict=True):
            sets = (~keep_highest(score, pruned * len(strand) // len(group))).nonzero().flatten().cpu()
            for part, channels in scored_parts(strand, kept):
                chosen = channels[sets].flatten().to(kept[part.name].device)
                kept[part.name].index_fill_(0 if part.side == "out" else 1, chosen, False)
    return Masks(kept)


def of_strands(group: ChannelGroup, scores: Tensor) -> Sequence[Tensor]:
    """Return the scores of the sets of each strand of a group, from all of them one after the other."""
    return scores.split([len(strand) for strand in group.strands])


def require_multiple(multiple: int) -> None:
    """Raise unless a number of channels can be a multiple of this.

    Raises:
        MmpError: if it is no whole number of at least 1.
    """
    if type(multiple) is not int or multiple < 1:
        raise MmpError(f"multiple={multiple!r}: must be a whole number of at least 1; 1 allows any number of channels")


def set_scores(group: ChannelGroup, scores: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the scores of the weights of each set of channels, float64 (sets,).

    Of a group with several strands, the sums of each strand's sets come one strand after the other.

    Args:
        group: The group.
        scores: One tensor for each prunable weight, by name, of its shape.
    """
    totals = []
    for strand in group.strands:
        total = torch.zeros(len(strand), dtype=torch.float64, device="cpu")
        for part, channels in scored_parts(strand, scores):
            rows = scores[part.name] if part.side == "out" else scores[part.name].transpose(0, 1)
            total += rows.flatten(1).sum(1, dtype=torch.float64).cpu()[channels].sum(1)
        totals.append(total)
    return torch.cat(totals)


def pruned_sets(group: ChannelGroup, sparsity: float, multiple: int) -> int:
    """Return the number of sets that a group loses, such that all its layers keep multiples of channels.

    At least one set stays.

    Args:
        group: The group.
        sparsity: The share of its sets to prune, at most.
        multiple: Divides the number of channels that a layer keeps.
    """
    return whole_steps(sparsity, len(group), sets_per_step(group, multiple))


def whole_steps(share: float, sets: int, step: int) -> int:
    """Return the number of sets that a group loses: at most a share of them, so that it keeps a multiple of a step.

    At least one set stays.

    Args:
        share: The share of its sets to prune, at most.
        sets: The number of its sets.
        step: The number of sets that is kept is divisible by it, unless all are kept.
    """
    kept = max(1, sets - pruned_count(share, sets))
    return max(0, sets - math.ceil(kept / step) * step)


def sets_per_step(group: ChannelGroup, multiple: int) -> int:
    """Return the smallest number of sets whose channels fill whole multiples in every layer that has them."""
    widths = [channels.shape[1] for part, channels in group.channels.items() if part.side in ("in", "out")]
    return math.lcm(*(multiple // math.gcd(multiple, width) for width in widths))


def weights_per_set(group: ChannelGroup, shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the number of prunable weights that write or read the channels of one set.

    Args:
        group: The group.
        shapes: The shape of each prunable weight, by name.
    """
    parts = scored_parts(group, shapes)
    return sum(
        channels.shape[1] * math.prod(shapes[part.name]) // shapes[part.name][0 if part.side == "out" else 1]
        for part, channels in parts
    )


def scored_parts(group: ChannelGroup, weights: Mapping[str, Any]) -> list[tuple[Part, Tensor]]:
    """Return the rows and columns of those of the group's weights that a mapping holds, with their channels.

    The inputs of a grouped convolution are no columns of its weight: its rows already belong to the same sets.
    """
    readers = set(group.readers)
    return [
        (part, channels)
        for part, channels in group.channels.items()
        if part.name in weights and (part.side == "out" or part in readers)
    ]


def _require_scores(group: ChannelGroup, scores: Mapping[str, Tensor]) -> None:
    missing = [part.name for part in group.decisive if part.name not in scores]
    if missing:
        raise MmpError(
            f"scores: {missing[0]!r} reads channels of {group.name!r} but has no scores, so they would not become "
            "unread; add its scores, or leave out the sparsity of this group"
        )
    for part, channels in scored_parts(group, scores):
        shape, dim = tuple(scores[part.name].shape), 0 if part.side == "out" else 1
        if len(shape) <= dim or shape[dim] <= int(channels.max()):
            raise MmpError(
                f"scores: those of {part.name!r} have the shape {shape}, but {group.name!r} has its channel "
                f"{int(channels.max())}; pass scores of the shape of the weight"
            )
