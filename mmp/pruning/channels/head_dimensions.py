"""Dimensions of attention heads as a group of channels: queries with keys, and values with what the output layer reads.

The scores of a head are products of its queries with its keys, summed over their dimensions. A dimension adds nothing
that a softmax sees if its keys do not depend on the input, and it can go with its query. A dimension of the values can
go if the output layer does not read it. All heads have equally many dimensions, so that a network can divide what a
layer returns among its heads. One set is therefore a dimension of every head, but each head may lose other dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmp.pruning.channels.group import ChannelGroup, Part

PLACES = (2, 1, 0)  # of the values among queries, keys and values, in the order in which layers write them


@dataclass(frozen=True, eq=False)
class HeadDimensions(ChannelGroup):
    """The dimensions of all heads of an attention, which lose equally many.

    If values have more dimensions than keys, or fewer, a set has several of the one or of the other, so that both lose
    the same share.

    Attributes:
        of_heads: For each head a group of its pairs of a query and a key, and a group of its values. The sets of each
            have an order of their own.
        queries: The channels of one of the two factors of every pair.
        heads: The whole heads, and the place of the values among queries, keys and values: all that the group is made
            of.
    """

    of_heads: tuple[ChannelGroup, ...] = ()
    queries: dict[Part, Tensor] = field(default_factory=dict)
    heads: tuple[ChannelGroup, int] | None = None

    @classmethod
    def of(cls, heads: ChannelGroup, place: int) -> HeadDimensions | None:
        """Return the dimensions of heads, if layers write the parts of each head one after the other.

        Whether the network has this form shows only when dimensions are removed.

        Args:
            heads: A group whose sets may be attention heads.
            place: Which of the three parts are the values: 0, 1 or 2.

        Returns:
            None if the sets are no heads of at least two dimensions.
        """
        parts = _parts(heads, place)
        if parts is None:
            return None
        value, (query, key) = parts.pop(place), parts
        of_heads = []
        for channels in ({part: own[head] for part, own in heads.channels.items()} for head in range(len(heads))):
            both = {part: [columns[part] for columns in (query, key) if part in columns] for part in channels}
            pairs = {part: torch.stack([channels[part][c] for c in two], 1) for part, two in both.items() if two}
            values = {part: channels[part][columns].unsqueeze(1) for part, columns in value.items()}
            of_heads += [ChannelGroup(pairs), ChannelGroup(values)]
        queries = {part: heads.channels[part][:, columns].flatten() for part, columns in query.items()}
        sets = math.gcd(*map(len, of_heads))
        return cls(_together(of_heads, sets), heads.passed, tuple(of_heads), queries, (heads, place))

    @property
    def name(self) -> str:
        """The name of the group of whole heads."""
        return self.heads[0].name if self.heads else super().name

    @property
    def strands(self) -> tuple[ChannelGroup, ...]:
        """The groups whose sets have an order of their own."""
        return self.of_heads

    @property
    def decisive(self) -> list[Part]:
        """All parts that write or read the dimensions: those of a query and its key are read by one another."""
        return [part for part in self.channels if part.side in ("out", "in")]

    def arranged(self, scores: Sequence[Tensor]) -> HeadDimensions:
        """Return the same group with the dimensions of the lowest scores, of each strand, in the first sets.

        Args:
            scores: For each strand, the scores of its sets.
        """
        ordered = []
        for strand, score in zip(self.strands, scores, strict=True):
            order = score.argsort(stable=True).cpu()
            ordered.append(ChannelGroup({part: channels[order] for part, channels in strand.channels.items()}))
        return replace(self, channels=_together(ordered, len(self)))

    @property
    def key_size(self) -> int:
        """The number of dimensions of a query of one head."""
        return len(self.of_heads[0])

    @property
    def sizes(self) -> frozenset[int]:
        """The numbers of dimensions of keys and of values: of one head, and of all."""
        count = len(self.of_heads) // 2
        return frozenset(times * len(strand) for strand in self.of_heads[:2] for times in (1, count))


def _together(strands: Sequence[ChannelGroup], sets: int) -> dict[Part, Tensor]:
    """Return the channels of sets with an equal share of every strand."""
    found: dict[Part, list[Tensor]] = {}
    for strand in strands:
        for part, channels in strand.channels.items():
            found.setdefault(part, []).append(channels.reshape(sets, -1))
    return {part: torch.cat(channels, 1) for part, channels in found.items()}


def _parts(heads: ChannelGroup, place: int) -> list[dict[Part, list[int]]] | None:
    """Return where queries, keys and values are among the channels of one head, in the order of writing.

    Returns:
        For each of the three, the columns of the channels of a head by part; None if a head has no such parts.
    """
    writers = [part for part in heads.channels if part.side == "out"]
    readers = [part for part in heads.channels if part.side == "in"]
    written = [(part, column) for part in writers for column in range(heads.channels[part].shape[1])]
    if heads.passed or len(readers) != 1:
        return None
    values = heads.channels[readers[0]].shape[1]
    keys, odd = divmod(len(written) - values, 2)
    if odd or keys < 1 or math.gcd(keys, values) < 2:
        return None
    sizes = [keys, keys]
    sizes.insert(place, values)
    found = []
    for size in sizes:
        own, written = written[:size], written[size:]
        if len({part for part, _ in own}) > 1:
            return None
        columns = [column for _, column in own]
        beside = (part for part in heads.channels if _goes_with(part, own[0][0], heads))
        found.append({own[0][0]: columns, **dict.fromkeys(beside, columns)})
    found[place][readers[0]] = list(range(values))
    return found


def _goes_with(part: Part, writer: Part, heads: ChannelGroup) -> bool:
    """Return whether a part is the bias of a layer, or the batch norm beside it, with the channels of its rows."""
    layer = writer.name.rpartition(".")[0]
    owner = {"dim0": layer, "norm": layer.rpartition(".")[0]}.get(part.side)
    same = part.name.rpartition(".")[0] == owner
    return same and torch.equal(heads.channels[part], heads.channels[writer])
