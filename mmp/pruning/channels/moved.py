"""What changes in a network when something in it is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmp.pruning.channels.group import Part

_SHARE = 1e-5  # a difference below this share of the largest value is rounding, which depends on the size of the batch


@dataclass(frozen=True)
class Moved:
    """What changes in each of T tests.

    Attributes:
        parts: Which channels of each part change, bool (T, channels): inputs of products, and batch norms.
        output: Whether the network's output changes, bool (T,).
    """

    parts: Mapping[Part, Tensor]
    output: Tensor

    def changed(self) -> dict[Part, Tensor]:
        """Return the parts in which a test changes something."""
        return {part: channels for part, channels in self.parts.items() if channels.any()}

    def __getitem__(self, tests: slice) -> Moved:
        """Return some of the tests."""
        return Moved({part: moved[tests] for part, moved in self.parts.items()}, self.output[tests])

    def __or__(self, other: Moved) -> Moved:
        """Return what changes in either of two versions of the same tests."""
        parts = dict(self.parts)
        for part, moved in other.parts.items():
            parts[part] = moved | parts[part] if part in parts else moved
        return Moved(parts, self.output | other.output)

    @staticmethod
    def stacked(each: Sequence[Moved]) -> Moved:
        """Return several sets of tests as one. A part that is missing in one of them does not change there."""
        parts = {}
        for part, width in {part: len(channels[0]) for moved in each for part, channels in moved.parts.items()}.items():
            none = (torch.zeros(len(moved.output), width, dtype=torch.bool, device="cpu") for moved in each)
            parts[part] = torch.cat([moved.parts.get(part, zeros) for moved, zeros in zip(each, none, strict=True)])
        return Moved(parts, torch.cat([moved.output for moved in each]))


def differs(now: Tensor, before: Tensor, tests: int) -> Tensor:
    """Return where a batch differs from one input, bool (T, *before.shape).

    Args:
        now: A batch of T inputs, (T * before.shape[0], ...).
        before: The input.
        tests: T.
    """
    return (now.reshape(tests, *before.shape) - before).abs_() > _SHARE * before.abs().max()
