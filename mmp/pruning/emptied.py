"""Layers that masks leave without a weight."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from mmp.errors import listed
from mmp.pruning.criteria import Criterion, Divided

log = logging.getLogger(__name__)

_LEAST_DENSITY = 0.01  # the minimum that the message proposes


def emptied_layers(masks: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the layers that lose all their weights."""
    return [name for name, mask in masks.items() if not mask.any()]


def warn_of_emptied(
    masks: Mapping[str, Tensor], strategy: str, baseline: Criterion | None = None, ranking: Criterion | None = None
) -> None:
    """Log a warning that names the layers that lose all their weights, if there are any, and the setting to change.

    Args:
        masks: The masks of a model.
        strategy: Name of the strategy that set the sparsities, unless a criterion did.
        baseline: The criterion that scored the weights and set the sparsities.
        ranking: The criterion that only set the sparsities.
    """
    emptied = emptied_layers(masks)
    if not emptied:
        return
    if baseline is not None:
        subject, remedy = f"criterion={baseline.name}", "lower the budget"
        if isinstance(baseline, Criterion) and not isinstance(baseline, Divided):
            remedy += f", or set criterion.min_density={_LEAST_DENSITY:g} to keep a share of every layer"
    elif ranking is not None:
        subject, remedy = f"allocation={ranking.name}", "lower the budget, or use allocation=strategy"
    else:
        subject, remedy = f"strategy={strategy}", "set ranges.constraints.ceiling below 1"
    log.warning(
        "%s prunes all weights of %d of %d layers (%s), so that their outputs do not depend on the image; %s",
        subject,
        len(emptied),
        len(masks),
        listed(map(repr, emptied)),
        remedy,
    )
