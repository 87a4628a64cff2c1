"""Signals: the importance of every weight (METHOD, phase 3).

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
from mmp.tensors import all_finite


class Scorer(Protocol):
    """What a signal or a criterion is: the statistics it needs and a function of one weight tensor."""

    @property
    def name(self) -> str:
        """The name that files and reports know it by."""

    @property
    def needs(self) -> frozenset[str]:
        """Which of ``mmp.pruning.calibration_statistics.STATISTICS`` it reads."""

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return importances of the weight's shape, higher is more important.

        Args:
            weight: The weight tensor.
            statistics: The statistics named in ``needs``, as ``mmp.pruning.calibration_statistics.collect`` says.
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
    """|g|, averaged over calibration batches (METHOD, phase 3)."""

    name: str = "gradient"
    needs: frozenset[str] = frozenset({"absolute_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of |g|."""
        return statistics["absolute_gradient"]


@dataclass(frozen=True)
class Product:
    """|w| * |g|, with |g| averaged over calibration batches (METHOD, phase 3)."""

    name: str = "product"
    needs: frozenset[str] = frozenset({"absolute_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return |w| times the mean of |g|."""
        return weight.abs().mul_(statistics["absolute_gradient"])


@dataclass(frozen=True)
class Fisher:
    """w^2 times the diagonal of the empirical Fisher matrix, E[g^2] over single images (Theis et al. 2018, 1801.05787).

    To second order, what the loss gains when a weight is removed. Costs a backward pass per image.
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
    """Return one score tensor per weight, as the signal or criterion defines it.

    Args:
        scorer: The signal.
        parameters: Weights by name.
        statistics: What ``mmp.pruning.calibration_statistics.collect`` returned, with everything that the signal needs.
        normalised: Whether to :func:`normalise` each.

    Raises:
        MmpError: if a needed statistic is missing, or a weight is not finite; never a silent fallback.
    """
    if missing := scorer.needs - statistics.keys():
        raise MmpError(f"signal {scorer.name!r} needs {sorted(missing)}, which were not collected")
    scores = {}
    for name, parameter in parameters.items():
        weight = parameter.detach()
        if not all_finite(weight):
            raise MmpError(f"weight {name!r} holds NaN or infinity; the checkpoint is damaged or training diverged")
        scores[name] = scorer.score(weight, {need: statistics[need][name] for need in scorer.needs})
        if normalised:
            scores[name] = normalise(scores[name])
    return scores


def normalise(scores: Tensor) -> Tensor:
    """Scale a layer's scores by a power of two so that the largest lies in [0.5, 1).

    A power of two scales exactly (float32 scores down to 1e-38 of the largest), so no two different scores become
    equal and masks do not change.
    """
    exponent = int(torch.frexp(scores.max()).exponent)
    return scores * 2.0 ** -max(exponent, -126)
