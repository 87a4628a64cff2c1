"""Patterns: structure that every mask of a layer satisfies exactly, so that hardware can use its zeros.

``2:4`` keeps at most two of every four neighbouring weights, the structure of sparse tensor cores (Mishra et al. 2021,
arXiv 2104.08378); ``N:M`` is the same with other numbers. ``4x1`` keeps or prunes blocks of four outputs by one input
as a whole, the idea of LPViT (Xu et al. 2024, arXiv 2407.02068). ``channels`` prunes whole channels, which can then be
removed (:mod:`mmp.pruning.channels`). :mod:`mmp.pruning.masks` makes the masks; this module imports no torch.

A weight has the shape (outputs, inputs per group, kernel...). Neighbours are the inputs of one output at one kernel
position: the columns of a linear layer's matrix, or of a channels-last convolution's matrix (one matrix per group).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mmp.errors import MmpError
from mmp.pruning.counts import pruned_count, sparsity_of
from mmp.pruning.layers.layer import Layer

_SPELLINGS = re.compile(r"(?P<kept>[1-9]\d*):(?P<of>[1-9]\d*)|(?P<rows>[1-9]\d*)x(?P<columns>[1-9]\d*)")
_CHANNELS = re.compile(r"channels(?::(?P<multiple>[1-9]\d*))?")
MULTIPLE = 16  # onnxruntime computes convolutions of other widths in a slower way


class WeightShape(NamedTuple):
    """The two properties of a layer that a pattern depends on, for weights without a `Layer`.

    Attributes:
        shape: (outputs, inputs per group, kernel...).
        groups: Groups of the convolution; no block crosses from one into the next.
    """

    shape: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True)
class Pattern:
    """At most ``kept`` of every ``of`` neighbouring blocks are kept; each block is kept or pruned as a whole.

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
        """Return the pattern that ``none``, ``N:M`` (``2:4``) or ``RxC`` (``4x1``) stands for.

        :func:`parse` also takes ``channels``.

        Raises:
            MmpError: if the text is none of these, or stands for a pattern that any mask satisfies.

        Example:
            >>> pattern = Pattern.parse("2:4")
            >>> pattern.kept, pattern.of
            (2, 4)
            >>> Pattern.parse("4x1")
            Pattern(kept=1, of=1, rows=4, columns=1)
            >>> Pattern.parse("none") == UNSTRUCTURED
            True
        """
        if text == str(UNSTRUCTURED):
            return UNSTRUCTURED
        found = _SPELLINGS.fullmatch(text)
        if not found:
            raise MmpError(
                f"pattern={text}: no such pattern; choose none, N:M such as 2:4, or blocks of outputs x inputs such as "
                "4x1 (in a YAML file, quote it: YAML reads an unquoted 2:4 as a time of day), or channels"
            )
        pattern = cls(**{key: int(value) for key, value in found.groupdict().items() if value})
        if pattern.kept >= pattern.of and pattern.unit == 1:
            raise MmpError(f"pattern={text} prunes nothing by itself; use pattern=none, or N < M as in 2:4")
        return pattern

    def __str__(self) -> str:
        """Return the pattern as it is written on the command line."""
        if self.of > 1:
            return f"{self.kept}:{self.of}"
        return "none" if self.unit == 1 else f"{self.rows}x{self.columns}"

    @property
    def unit(self) -> int:
        """Number of weights that are kept or pruned together."""
        return self.rows * self.columns

    def fits(self, layer: Layer | WeightShape) -> bool:
        """Return whether the layer's shape divides into whole blocks, and for N:M into whole runs of M blocks."""
        shape = layer.shape
        if len(shape) < 2:
            return False
        return shape[0] % (layer.groups * self.rows) == 0 and shape[1] % (self.columns * self.of) == 0

    def fitting(self, layers: Iterable[Layer]) -> list[Layer]:
        """Return the layers whose shape the pattern fits.

        Raises:
            MmpError: if it fits none; the message states the rule for shapes.
        """
        if fitting := [layer for layer in layers if self.fits(layer)]:
            return fitting
        rule = f"inputs per group divisible by {self.columns * self.of}"
        rule += f", and outputs per group divisible by {self.rows}" if self.rows > 1 else ""
        raise MmpError(
            f"pattern={self} fits the shape of no layer of this model: it needs {rule}; choose another pattern, or none"
        )

    def forced(self, layer: Layer | WeightShape) -> int:
        """Return the number of weights that a layer must lose for the pattern to hold."""
        return math.prod(layer.shape) // self.of * max(0, self.of - self.kept)

    def takes(self, layer: Layer | WeightShape, sparsity: float) -> bool:
        """Return whether a layer's mask satisfies the pattern: its shape fits, and the sparsity is high enough.

        Every other layer is pruned weight by weight.

        Args:
            layer: The layer.
            sparsity: Share of its weights that are pruned.
        """
        return self.fits(layer) and pruned_count(sparsity, math.prod(layer.shape)) >= self.forced(layer)

    def least(self, layer: Layer | WeightShape) -> float:
        """Return the lowest sparsity at which a layer takes the pattern, 1 - N/M; 0 if its shape does not fit."""
        return sparsity_of(self.forced(layer), math.prod(layer.shape)) if self.fits(layer) else 0.0

    def whole(self, layer: Layer | WeightShape, sparsity: float) -> float:
        """Return a layer's sparsity rounded down to whole blocks; unchanged if it is pruned weight by weight.

        Args:
            layer: The layer.
            sparsity: Share of its weights that are pruned.
        """
        if self.unit == 1 or not self.fits(layer):
            return sparsity
        total = math.prod(layer.shape)
        return sparsity_of(pruned_count(sparsity, total) // self.unit * self.unit, total)


UNSTRUCTURED = Pattern()


@dataclass(frozen=True)
class Channels:
    """Whole channels are kept or pruned, and every layer keeps a multiple of them.

    Attributes:
        multiple: The number of channels that a layer keeps is divisible by it. A narrower layer is not pruned.
    """

    multiple: int = MULTIPLE

    def __str__(self) -> str:
        """Return the pattern as it is written on the command line."""
        return "channels" if self.multiple == MULTIPLE else f"channels:{self.multiple}"


def parse(text: str) -> Pattern | Channels:
    """Return the pattern that a text stands for: one of :meth:`Pattern.parse`, ``channels``, or ``channels:8``.

    Raises:
        MmpError: if the text is none of these.

    Example:
        >>> parse("channels"), parse("channels:8"), parse("2:4")
        (Channels(multiple=16), Channels(multiple=8), Pattern(kept=2, of=4, rows=1, columns=1))
    """
    if found := _CHANNELS.fullmatch(text):
        return Channels(int(found["multiple"] or MULTIPLE))
    if text.strip().lower().startswith("channels"):
        raise MmpError(
            f"pattern={text}: whole channels are written channels (layers keep multiples of {MULTIPLE}), or channels:N "
            "with a whole number N of at least 1, such as channels:8"
        )
    return Pattern.parse(text)


def no_channels(setting: str, pattern: Channels) -> str:
    """Return the message for a setting that ranks or observes single weights, and so does not fit whole channels."""
    return f"{setting} is for single weights, but pattern={pattern} prunes whole channels; set one of the two"
