"""Strategies: from every layer's range to one sparsity per layer (docs/method.md, phase 2).

A strategy is data: it gives every layer a position in [0, 1] inside its range [lo, hi]. The ten strategies of the paper
are the YAML files in ``conf/strategy``; a new strategy is a new file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmp.errors import MmpError, nearest
from mmp.pruning.layers.layer import Layer, count_weights
from mmp.pruning.ranges import Range

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Strategy:
    """A rule for the position a(l) of every layer l in its range; its sparsity is lo + a(l) * (hi - lo).

    Attributes:
        name: The strategy's name.
        position: a(l) of every layer, unless ``groups`` or ``proportional`` sets it.
        groups: a(l) of the layers in a group of the range table (``late``, ``feature``), by the group's name.
        proportional: If set, a(l) = min(1, proportional * n_l / n_ref) for a layer of n_l weights, instead of
            ``position``.
        reference: n_ref: ``total``, the weights of all layers, which reproduces the tables of the paper; or
            ``average``, the mean over layers, as in its text.

    Raises:
        MmpError: on a position outside [0, 1], a ``proportional`` that is not positive, or an unknown reference.
    """

    name: str
    position: float = 0.0
    groups: Mapping[str, float] = field(default_factory=dict)
    proportional: float | None = None
    reference: str = "total"

    def __post_init__(self) -> None:
        for key, value in {"position": self.position, **self.groups}.items():
            if not 0.0 <= value <= 1.0:
                raise MmpError(f"strategy={self.name}: {key} is {value}, but must be a position in [0, 1]")
        if self.proportional is not None and not self.proportional > 0:
            raise MmpError(f"strategy={self.name}: proportional is {self.proportional}, but must be positive")
        if self.reference not in ("total", "average"):
            raise MmpError(
                f"strategy={self.name}: unknown reference {self.reference!r}; "
                f"{nearest(self.reference, ('total', 'average'))}"
            )


def positions(strategy: Strategy, layers: Sequence[Layer], groups: Mapping[str, frozenset[str]]) -> dict[str, float]:
    """Return the position a(l) in [0, 1] of every layer, by name.

    Args:
        strategy: The strategy.
        layers: The model's prunable layers.
        groups: Names of the layers in each group of the range table.

    Raises:
        MmpError: if the strategy names a group that the table does not define.
    """
    for group in strategy.groups:
        if group not in groups:
            raise MmpError(
                f"strategy={strategy.name}: the range table defines no group {group!r}; {nearest(group, groups)}"
            )
        if not groups[group]:
            log.warning("strategy=%s: group %r of the range table matches no layer of this model", strategy.name, group)
    total = count_weights(layers)
    reference = total if strategy.reference == "total" else total / len(layers)
    result = {}
    for layer in layers:
        position = strategy.position
        if strategy.proportional is not None:
            position = min(1.0, strategy.proportional * layer.size / reference)
        for group, value in strategy.groups.items():
            if layer.name in groups[group]:
                position = value
        result[layer.name] = position
    return result


def layer_sparsities(
    strategy: Strategy,
    layers: Sequence[Layer],
    ranges: Mapping[str, Range],
    groups: Mapping[str, frozenset[str]],
) -> dict[str, float]:
    """Return the sparsity of every layer, by name: a fraction in its range (docs/method.md, phase 2).

    Args:
        strategy: The strategy.
        layers: The model's prunable layers.
        ranges: The range of every layer, by name.
        groups: Names of the layers in each group of the range table.

    Raises:
        MmpError: if the strategy names a group that the table does not define.
    """
    position = positions(strategy, layers, groups)
    return {layer.name: ranges[layer.name].at(position[layer.name]) for layer in layers}
