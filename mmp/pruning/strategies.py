"""Strategies: one sparsity per layer out of the layers' ranges (phase 2 of the method).

A strategy is data: where each layer goes inside its range [lo, hi], as a position in [0, 1]. The ten of the
paper are the YAML files under ``conf/strategy``; a new one is a new file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmp.errors import MmpError, nearest
from mmp.pruning.layers.layer import Layer
from mmp.pruning.ranges import Range

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Strategy:
    """A rule for the position a(l) of every layer in its range; sparsity = lo + a * (hi - lo).

    Attributes:
        name: The strategy's name.
        position: a(l) of layers that nothing below names.
        groups: Position of the layers of a named group of the range table (``late``, ``feature``).
        proportional: If set, a(l) = min(1, proportional * n_l / n_ref), and ``position`` is not used.
        reference: What n_ref is: ``total`` weights of all layers, which reproduces the paper's tables, or the
            ``average`` of a layer, which its text writes.

    Raises:
        MmpError: on a position outside [0, 1], or an unknown reference.
    """

    name: str
    position: float = 0.0
    groups: Mapping[str, float] = field(default_factory=dict)
    proportional: float | None = None
    reference: str = "total"

    def __post_init__(self) -> None:
        for key, value in {"position": self.position, **self.groups}.items():
            if not 0.0 <= value <= 1.0:
                raise MmpError(f"strategy={self.name}: {key} is {value}, but a position lies in [0, 1]")
        if self.proportional is not None and not self.proportional > 0:
            raise MmpError(f"strategy={self.name}: proportional is {self.proportional}, but must be positive")
        if self.reference not in ("total", "average"):
            raise MmpError(
                f"strategy={self.name}: unknown reference {self.reference!r}; "
                f"{nearest(self.reference, ('total', 'average'))}"
            )


def positions(strategy: Strategy, layers: Sequence[Layer], groups: Mapping[str, frozenset[str]]) -> dict[str, float]:
    """Return a(l) in [0, 1] for every layer.

    Args:
        strategy: The strategy.
        layers: The model's prunable layers.
        groups: Layer names in each group that the range table defines.

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
    total = sum(layer.size for layer in layers)
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
    """Return the sparsity of every layer, a fraction inside its range (METHOD, phase 2)."""
    where = positions(strategy, layers, groups)
    return {layer.name: ranges[layer.name].at(where[layer.name]) for layer in layers}
