"""Signals: the importance of every weight (docs/method.md, phase 3).

One pass over the calibration split collects statistics (:mod:`mmp.pruning.calibration_statistics`); a signal is a
function of a weight and its statistics. A new signal is a class with ``name``, ``needs`` and ``score``, and a YAML file
in ``conf/signal``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.tensors import all_finite, widened


class Scorer(Protocol):
    """The interface of signals and criteria: a function of one weight tensor and its statistics."""

    @property
    def name(self) -> str:
        """The scorer's name in files and reports."""

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that the score is computed from, out of ``mmp.pruning.calibration_statistics.STATISTICS``."""

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return importances of the weight's shape; higher is more important.

        Args:
            weight: The weight tensor, in float32 if the model has half precision.
            statistics: This weight's statistics of :func:`mmp.pruning.calibration_statistics.collect`, by name.
        """


@dataclass(frozen=True)
class Magnitude:
    """|w| (Han et al. 2015, arXiv 1506.02626)."""

    name: str = "magnitude"
    needs: frozenset[str] = frozenset()

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return |w|."""
        return weight.abs()


@dataclass(frozen=True)
class Gradient:
    """|g|, averaged over calibration batches (docs/method.md, phase 3)."""

    name: str = "gradient"
    needs: frozenset[str] = frozenset({"absolute_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of |g|."""
        return statistics["absolute_gradient"]


@dataclass(frozen=True)
class Product:
    """|w| * |g|, with |g| averaged over calibration batches (docs/method.md, phase 3)."""

    name: str = "product"
    needs: frozenset[str] = frozenset({"absolute_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return |w| times the mean of |g|."""
        return weight.abs().mul_(statistics["absolute_gradient"])


@dataclass(frozen=True)
class Fisher:
    """w^2 times the diagonal of the empirical Fisher matrix (Theis et al. 2018, arXiv 1801.05787).

    The diagonal is E[g^2] over single images, so the statistic takes one backward pass per image. The score
    approximates, to second order, the increase of the loss when a weight is removed.
    """

    name: str = "fisher"
    needs: frozenset[str] = frozenset({"squared_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return w^2 times the mean squared gradient."""
        return weight.square() * statistics["squared_gradient"]


PAPER_SIGNALS: tuple[Scorer, ...] = (Magnitude(), Gradient(), Product())


def score(
    scorer: Scorer,
    parameters: Mapping[str, nn.Parameter],
    statistics: Mapping[str, Mapping[str, Tensor]],
    normalised: bool = False,
) -> dict[str, Tensor]:
    """Return the scores of every weight, one tensor of its shape by name.

    Args:
        scorer: The signal or criterion.
        parameters: Weights by name.
        statistics: The statistics of :func:`mmp.pruning.calibration_statistics.collect`, at least those that the scorer
            needs; empty if it needs none.
        normalised: Whether to :func:`normalise` the scores of each weight.

    Raises:
        MmpError: if a statistic is missing, or a weight is not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = nn.Linear(3, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[0.5, -2.0, 1.0]])
        >>> score(Magnitude(), dict(layer.named_parameters()), {})
        {'weight': tensor([[0.5000, 2.0000, 1.0000]])}
    """
    if missing := scorer.needs - statistics.keys():
        raise MmpError(
            f"signal {scorer.name!r} needs {sorted(missing)}; collect these statistics first "
            "(mmp.pruning.calibration_statistics.collect)"
        )
    scores = {}
    for name, parameter in parameters.items():
        weight = widened(parameter.detach())
        if not all_finite(weight):
            raise MmpError(f"weight {name!r} holds NaN or infinity; the checkpoint is damaged or training diverged")
        scores[name] = scorer.score(weight, {need: statistics[need][name] for need in scorer.needs})
        if normalised:
            scores[name] = normalise(scores[name])
    return scores


def normalise(scores: Tensor) -> Tensor:
    """Return a layer's scores, scaled by a power of two to a largest score in [0.5, 1).

    Scaling by a power of two is exact (for float32, down to 1e-38 of the largest score): different scores stay
    different, and masks do not change.
    """
    exponent = int(torch.frexp(scores.max()).exponent) if scores.numel() else 0
    return scores * 2.0 ** -max(exponent, -126)
