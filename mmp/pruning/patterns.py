"""Patterns: structure that masks satisfy exactly, so that hardware can make use of their zeros.

``2:4`` keeps at most two of every four weights in a row, which is what sparse tensor cores run (Mishra et al. 2021,
arXiv 2104.08378); any ``N:M`` is the same with other numbers. ``4x1`` prunes blocks of four outputs by one input as a
whole, the idea of LPViT (Xu et al. 2024, arXiv 2407.02068). Imports no torch; :mod:`mmp.pruning.masks` makes the masks.

A weight is (outputs, inputs, kernel...), that of a grouped convolution (outputs, inputs per group, kernel...). What
stands beside each other are its inputs, at one kernel position: the columns of a linear's matrix, and of a
channels-last convolution's, of which a grouped one has one per group.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmp.errors import MmpError

_SPELLINGS = re.compile(r"(?P<kept>[1-9]\d*):(?P<of>[1-9]\d*)|(?P<rows>[1-9]\d*)x(?P<columns>[1-9]\d*)")


@dataclass(frozen=True)
class Pattern:
    """At most ``kept`` of every ``of`` neighbouring blocks are kept, each of which is kept or pruned as a whole.

    Attributes:
        kept: N of N:M.
        of: M of N:M.
        rows: Outputs of a block.
        columns: Inputs of a block.
    """

    kept: int = 1
    of: int = 1
    rows: int = 1
    columns: int = 1

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Return what ``none``, ``N:M`` (``2:4``) or ``RxC`` (``4x1``) means.

        Raises:
            MmpError: if it is none of these, or leaves everything as it is.
        """
        if text == str(UNSTRUCTURED):
            return UNSTRUCTURED
        found = _SPELLINGS.fullmatch(text)
        if not found:
            raise MmpError(
                f"pattern={text}: no such pattern; choose none, N:M such as 2:4, or blocks of outputs x inputs such as "
                "4x1 (in a YAML file, put 2:4 in quotes: without them YAML reads a time of day)"
            )
        pattern = cls(**{key: int(value) for key, value in found.groupdict().items() if value})
        if pattern.kept >= pattern.of and pattern.unit == 1:
            raise MmpError(f"pattern={text} prunes nothing by itself; use pattern=none, or N < M as in 2:4")
        return pattern

    def __str__(self) -> str:
        """Return how a command line spells it."""
        if self.of > 1:
            return f"{self.kept}:{self.of}"
        return "none" if self.unit == 1 else f"{self.rows}x{self.columns}"

    @property
    def unit(self) -> int:
        """Number of weights that are kept or pruned together."""
        return self.rows * self.columns

    def fits(self, shape: Sequence[int], groups: int = 1) -> bool:
        """Return whether a weight divides into whole blocks, N:M into whole M of them; one that does not has none.

        Args:
            shape: (outputs, inputs per group, kernel...).
            groups: Groups of a convolution; no block may reach from one into the next.
        """
        if len(shape) < 2:
            return False
        return shape[0] % (groups * self.rows) == 0 and shape[1] % (self.columns * self.of) == 0

    def forced(self, shape: Sequence[int]) -> int:
        """Return how many weights of a layer must go so that the pattern can hold."""
        return math.prod(shape) // self.of * max(0, self.of - self.kept)

    def takes(self, shape: Sequence[int], sparsity: float, groups: int = 1) -> bool:
        """Return whether a layer's mask of this sparsity satisfies it: the shape fits, and enough weights go.

        This is the rule for who has the pattern; every other layer is pruned weight by weight.
        """
        return self.fits(shape, groups) and math.floor(sparsity * math.prod(shape)) >= self.forced(shape)

    def least(self, shape: Sequence[int], groups: int = 1) -> float:
        """Return the least sparsity at which a layer takes it, 1 - N/M; 0 where the shape does not fit."""
        return sparsity_of(self.forced(shape), math.prod(shape)) if self.fits(shape, groups) else 0.0

    def whole(self, shape: Sequence[int], sparsity: float, groups: int = 1) -> float:
        """Return what a layer's sparsity comes to where whole blocks go; as it is where single weights do."""
        if self.unit == 1 or not self.fits(shape, groups):
            return sparsity
        total = math.prod(shape)
        return sparsity_of(math.floor(sparsity * total) // self.unit * self.unit, total)


UNSTRUCTURED = Pattern()


def sparsity_of(pruned: int, total: int) -> float:
    """Return the least sparsity by which a mask takes floor(sparsity * n) = so many of a layer's weights."""
    share = pruned / total
    return share if math.floor(share * total) == pruned else math.nextafter(share, 1.0)
