"""Coupled channels as values: parts of tensors, and the sets of their channels that can only be removed together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """One dimension of a tensor, or the channels of a batch norm.

    Attributes:
        name: Name of the parameter or buffer, or of the batch norm.
        side: ``out`` for rows of a weight, ``in`` for its columns, ``norm`` for channels of a batch norm, and ``dim0``,
            ``dim1`` and so on for a dimension of any other tensor.
    """

    name: str
    side: str


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Sets of coupled channels over the same parts. Each set is removed as a whole, and any number of sets may be.

    Attributes:
        channels: The channels of every set in every part, int64 (sets, channels of one set in this part).
        passed: Names of the weights of grouped convolutions, which pass channels on: their inputs are no columns.
    """

    channels: dict[Part, Tensor]
    passed: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The first weight that writes the channels, and the first of them in brackets, as in ``conv1.weight[26]``.

        Groups may share their first weight, as in Res2Net. Without brackets, the first channel is 0.
        """
        first = int(self.channels[self.writer].min())
        return f"{self.writer.name}[{first}]" if first else self.writer.name

    @property
    def writer(self) -> Part:
        """The first weight that writes the channels."""
        return next(part for part in self.channels if part.side == "out")

    def __len__(self) -> int:
        """Return the number of sets."""
        return len(next(iter(self.channels.values())))

    @property
    def strands(self) -> tuple[ChannelGroup, ...]:
        """The groups whose sets have an order of their own: this one, unless a set may take its channels from others.

        Each loses the same share of its sets.
        """
        return (self,)

    @property
    def decisive(self) -> list[Part]:
        """The parts whose weights must be zero for a set to be unread."""
        return self.readers

    @property
    def readers(self) -> list[Part]:
        """The parts that read the channels, except grouped convolutions, which pass them on."""
        return [part for part in self.channels if part.side == "in" and part.name not in self.passed]
