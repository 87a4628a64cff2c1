"""Criteria: complete single-method pruners, a score and one global ranking over all layers.

They are the baselines of the method, and the observers of its phase 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmp.errors import MmpError, nearest
from mmp.masks import Masks, keep_highest, pruned_count
from mmp.signals import Magnitude, Scorer


@dataclass(frozen=True)
class Mag(Magnitude):
    """Global magnitude: the signal |w|, ranked over all layers together (Han et al. 2015, arXiv 1506.02626)."""

    name: str = "mag"


@dataclass(frozen=True)
class Snip:
    """Connection sensitivity |w * dL/dw|, with one gradient over all samples (Lee et al. 2019, arXiv 1810.02340).

    Unlike the signal ``product``, the gradient keeps its sign until it is averaged, so samples that pull a
    weight in opposite directions cancel. The paper's division by the sum over all weights changes no ranking.
    """

    name: str = "snip"
    needs: frozenset[str] = frozenset({"gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return |w * g|."""
        return (weight * statistics["gradient"]).abs()


@dataclass(frozen=True)
class Grasp:
    """Gradient signal preservation (Wang et al. 2020, arXiv 2002.07376).

    The paper's score of removing a weight is -w * (H g), and the largest are removed first; the importance is
    therefore w * (H g), of either sign.
    """

    name: str = "grasp"
    needs: frozenset[str] = frozenset({"hessian_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return w * (H g)."""
        return weight * statistics["hessian_gradient"]


CRITERIA: dict[str, Scorer] = {criterion.name: criterion for criterion in (Mag(), Snip(), Grasp())}


def criterion(name: str) -> Scorer:
    """Return a criterion by name.

    Raises:
        MmpError: on an unknown name, with the nearest.
    """
    if name not in CRITERIA:
        raise MmpError(f"unknown criterion {name!r}; {nearest(name, CRITERIA)}")
    return CRITERIA[name]


def global_masks(scores: Mapping[str, Tensor], target: float) -> Masks:
    """Prune exactly floor(target * N) lowest scores over all layers together.

    Ties go by the order of the layers, then by flat index.

    Args:
        scores: One tensor per layer, comparable between layers.
        target: Global sparsity, a fraction.
    """
    everything = torch.cat([value.detach().flatten() for value in scores.values()])
    keep = keep_highest(everything, pruned_count(target, everything.numel()))
    parts = keep.split([value.numel() for value in scores.values()])
    return Masks({name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)})


def global_sparsities(scores: Mapping[str, Tensor], target: float) -> dict[str, float]:
    """Return the sparsity that each layer gets when a criterion prunes ``target`` of all weights."""
    masks = global_masks(scores, target)
    return {name: pruned / masks[name].numel() for name, pruned in masks.pruned.items()}
