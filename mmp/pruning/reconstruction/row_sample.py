"""A sample of the rows that a layer's moments are taken from.

A convolution of large images has thousands of times as many rows as columns, and neighbouring rows are alike. Least
squares with a few dozen rows for each column have nearly the same solution, in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from mmp.pruning.layers.products import columns_of, pieces_at, pieces_of
from mmp.pruning.reconstruction.moments import FEW, Moments, MomentSums

_UNSEEN = 0.2  # share of the sample that errors are measured on
_EVERY, _ENOUGH = 5, 20  # where rows are few, one of five images is held out, if there are at least twenty
_LEAST = 64  # rows to solve with, so that some are unseen
_CHOOSING = 32  # outputs of each group, or up to twice as many, that decide the ridge


@dataclass(frozen=True)
class SampledMoments:
    """The moments of a layer.

    Attributes:
        solving: Moments of the rows to solve with; their means are those of all rows.
        unseen: Moments of other rows, on which errors are measured; of the same rows if all are taken.
        few: Whether rows are so few that a solution may fit them and no others. Then ``unseen`` are the rows of a fifth
            of the images, and ``solving`` those of the others, to be joined once a solution is chosen. Some outputs are
            enough to choose it.
    """

    solving: Moments
    unseen: Moments
    few: bool = False

    @property
    def step(self) -> int:
        """Distance between outputs of a group that errors are measured on: 1, unless rows are few and outputs many."""
        return max(1, self.solving.y.shape[1] // _CHOOSING) if self.few else 1

    @property
    def measured(self) -> Moments:
        """The unseen moments of the outputs on which errors are measured."""
        return self.unseen if self.step == 1 else self.unseen.every(self.step)

    def measured_of(self, weight: Tensor) -> Tensor:
        """Return the part of a weight, or of its mask, that has these outputs: (groups, outputs, columns)."""
        return self.solving.rows_of(weight)[:, :: self.step]

    @classmethod
    def of(
        cls,
        inputs: Iterable[Sequence[tuple[nn.Module, Tensor]]],
        products: Iterable[Sequence[Tensor]],
        images: Sequence[int],
        rows_per_column: int,
    ) -> SampledMoments:
        """Return the moments of a layer, from batches of images.

        Args:
            inputs: For each batch and each call of the layer, the module and its input.
            products: For each batch and each call, the target, (groups, rows, outputs per group).
            images: Number of images of each batch.
            rows_per_column: Number of rows to solve with for each column of the weight; 0 takes all. All are also taken
                if there are too few to measure errors on others. If they are fewer than ten for each column, the rows
                of every fifth image are not solved with.
        """
        solving, unseen, means = MomentSums(), MomentSums(), _Means()
        sample: _Sample | None = None
        starts = [0, *accumulate(images[:-1])]  # number of images before each batch
        for first, count, calls, targets in zip(starts, images, inputs, products, strict=True):
            if sample is None:
                weight = calls[0][0].weight
                assert isinstance(weight, Tensor)
                rows = sum(target.shape[1] for target in targets) * sum(images) / images[0]
                by_image = sum(images) >= _ENOUGH and all(len(read) % count == 0 for _, read in calls)
                sample = _Sample.of(rows, rows_per_column, weight[0].numel(), by_image)
            for (module, read), target in zip(calls, targets, strict=True):
                y = target.to(read.device)
                if sample.share:
                    means.add(module, read, y)
                if (places := sample.places(y.shape[1], first, count)) is None:
                    solving.add(pieces_of(module, read, y))
                    continue
                for sums, chosen in zip((solving, unseen), places, strict=True):
                    if len(chosen):
                        sums.add(pieces_at(module, read, y, chosen.to(read.device)))
        moments = solving.moments()
        if sample and sample.share:
            return cls(replace(moments, x=means.x, y=means.y), unseen.moments())
        return cls(moments, unseen.moments(), True) if unseen.rows else cls(moments, moments)


class _Means:
    """Means of all rows of X and Y, on which the constant of every output depends."""

    def __init__(self) -> None:
        self._x, self._y, self._rows = torch.zeros((), device="cpu"), torch.zeros((), device="cpu"), 0

    def add(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        """Add the rows of a call. Images are summed before they are unfolded, which costs as much as one image."""
        self._x = columns_of(module, inputs.float().sum(0, keepdim=True)).sum(1).double() + self._x
        self._y = targets.sum(1).double() + self._y
        self._rows += targets.shape[1]

    @property
    def x(self) -> Tensor:
        """Means of X, float64 (groups, columns)."""
        return self._x / self._rows

    @property
    def y(self) -> Tensor:
        """Means of Y, float64 (groups, outputs per group)."""
        return self._y / self._rows


@dataclass
class _Sample:
    """The rows that are drawn from each call of a layer.

    Attributes:
        share: Share of the rows that are drawn, those to measure on included; 0 if all are taken and none is drawn.
        few: Whether all are taken, and measured on every fifth image, since there are few.
        drawn: Number of rows so far.
    """

    share: float
    few: bool = False
    drawn: int = 0

    @classmethod
    def of(cls, rows: float, rows_per_column: int, columns: int, by_image: bool) -> _Sample:
        """Return the sample of a layer.

        Args:
            rows: Number of its rows.
            rows_per_column: Number of rows to solve with, for each column; 0 takes all.
            columns: Number of its columns.
            by_image: Whether rows of some images can be held out.
        """
        if not rows_per_column:
            return cls(0.0)
        share = max(rows_per_column * columns, _LEAST) / (1 - _UNSEEN) / rows
        return cls(share) if share < 1 else cls(0.0, by_image and rows < FEW * columns)

    def places(self, rows: int, first: int, count: int) -> tuple[Tensor, Tensor] | None:
        """Return the numbers of the rows of a call to solve with, and of those to measure on; None takes all for both.

        Args:
            rows: Number of rows of the call.
            first: Number of images in earlier batches.
            count: Number of images in this batch.
        """
        if self.few:
            numbers = torch.arange(rows, device="cpu")
            held = (first + numbers * count // rows) % _EVERY == _EVERY - 1
            return numbers[~held], numbers[held]
        return self.draw(rows) if self.share else None

    def draw(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return the numbers of some rows of a call to solve with, and of some to measure on.

        The rows are divided evenly, and one of each part is drawn, so that all images and places have a share. Chance
        decides which of the drawn rows are measured on.
        """
        parts = min(rows, max(1, round(self.share * rows)))
        edges = torch.linspace(0, rows, parts + 1, dtype=torch.float64, device="cpu").long()
        generator = torch.Generator().manual_seed(self.drawn)
        chosen = edges[:-1] + (torch.rand(parts, generator=generator, device="cpu") * edges.diff()).long()
        unseen = torch.rand(parts, generator=generator, device="cpu") < _UNSEEN
        self.drawn += parts
        return chosen[~unseen], chosen[unseen]
