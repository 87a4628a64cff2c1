"""Budgets: sparsities shifted by one common offset to a global sparsity or a size in megabytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmp.errors import MmpError
from mmp.pruning.layers.layer import Layer
from mmp.pruning.patterns import UNSTRUCTURED, Pattern, sparsity_of
from mmp.pruning.ranges import RangeTable
from mmp.pruning.sizes import MEGABYTE, Sizes


@dataclass(frozen=True)
class Budget:
    """What a strategy is shifted to meet: a global sparsity, or a size on disk. An empty budget shifts nothing.

    Attributes:
        sparsity: The global sparsity, a fraction of the prunable weights.
        megabytes: Size of the pruned model, in units of 10^6 bytes.
        strategies: Sparsities of single strategies, which win over the common one.
    """

    sparsity: float | None = None
    megabytes: float | None = None
    strategies: Mapping[str, float] = field(default_factory=dict)

    def of(self, strategy: str) -> float | None:
        """Return the global sparsity that a strategy has to meet; None where there is none."""
        return self.strategies.get(strategy, self.sparsity)

    def __str__(self) -> str:
        """Return the budget in words; empty if there is none."""
        parts = [f"{self.megabytes:g} MB"] if self.megabytes is not None else []
        parts += [f"{100 * self.sparsity:g} %"] if self.sparsity is not None else []
        parts += [f"{name} {100 * value:g} %" for name, value in self.strategies.items()]
        return ", ".join(parts)


def to_budget(
    name: str,
    sparsities: Mapping[str, float],
    target: float | None,
    layers: Sequence[Layer],
    table: RangeTable,
    budget: Budget,
    sizes: Sizes,
    pattern: Pattern = UNSTRUCTURED,
) -> dict[str, float]:
    """Return sparsities shifted to a global sparsity, to the weight; as they are if there is none to meet.

    With a pattern of blocks they are those of whole blocks, and a global sparsity is met to less than one.

    Args:
        name: What they come from, for the message.
        sparsities: The sparsity of every layer.
        target: The global sparsity.
        layers: The model's prunable layers.
        table: The range table, for what counts as a small layer, which no budget moves.
        budget: What asks for the target, for the message.
        sizes: Bytes of the model's parts.
        pattern: What masks satisfy.

    Raises:
        MmpError: if the target is out of reach; the message says what can be reached.
    """
    if target is None:
        return {layer.name: pattern.whole(layer.shape, sparsities[layer.name], layer.groups) for layer in layers}
    ceiling = min(BUDGET_CEILING, table.constraints.ceiling)
    small = table.small(layers)
    least, most = reachable(layers, sparsities, small, ceiling, pattern)
    if not least <= target <= most:
        said, reach = f"budget={target:g}", f"global sparsities from {inwards(least, most)}"
        if budget.megabytes is not None:
            low, high = (sizes.sparse(round(share * sizes.weights)) / MEGABYTE for share in (most, least))
            said = f"budget.megabytes={budget.megabytes:g}"
            reach = f"sizes from {inwards(low, high, 3)} MB (the dense model has {sizes.dense / MEGABYTE:.3f} MB)"
        raise MmpError(f"{said} is out of reach: {name} can be shifted to {reach}")
    shifted = meet_budget(layers, sparsities, target, small, ceiling, pattern)
    return whole_weights(layers, shifted, small, ceiling, pattern)


def budget_target(budget: Budget, strategy: str, sizes: Sizes) -> float | None:
    """Return the global sparsity that a budget asks of a strategy, None without a budget."""
    if budget.megabytes is not None:
        return sizes.sparsity_for(budget.megabytes * MEGABYTE)
    return budget.of(strategy)


BUDGET_CEILING = 0.98


def global_sparsity(layers: Sequence[Layer], sparsities: Mapping[str, float]) -> float:
    """Return the sparsity over all prunable weights: the mean of the layers' sparsities weighted by size."""
    return sum(layer.size * sparsities[layer.name] for layer in layers) / sum(layer.size for layer in layers)


def meet_budget(
    layers: Sequence[Layer],
    sparsities: Mapping[str, float],
    target: float,
    fixed: frozenset[str] = frozenset(),
    ceiling: float = BUDGET_CEILING,
    pattern: Pattern = UNSTRUCTURED,
) -> dict[str, float]:
    """Shift every layer by one common offset so that the global sparsity is ``target``.

    The global sparsity is a piecewise linear, rising function of the offset, with a corner wherever a layer
    reaches 0 or 0.98; the offset is found between two corners by one division (METHOD, phase 2, budget).

    Args:
        layers: The model's prunable layers.
        sparsities: The strategy's sparsity of every layer.
        target: Global sparsity wanted, as a fraction.
        fixed: Names of the layers that stay as they are (small layers under the 10K rule).
        ceiling: Sparsity that no layer is shifted beyond.
        pattern: Pattern of the masks; a layer that takes it is not shifted below where it can.

    Returns:
        Shifted sparsities, clipped to [0, ceiling]; a layer that starts above the ceiling is shifted down only.

    Raises:
        MmpError: if no offset reaches the target; the message says what can be reached.
    """
    least, most = reachable(layers, sparsities, fixed, ceiling, pattern)
    rounding = 1e-9
    if not least - rounding <= target <= most + rounding:
        raise MmpError(
            f"budget={target:g} is out of reach: this model's layers can be shifted to global sparsities from "
            f"{inwards(least, most)}"
        )
    size = np.array([layer.size for layer in layers], dtype=float)
    start = np.array([sparsities[layer.name] for layer in layers])
    bottom = np.array(list(_floors(layers, sparsities, pattern).values()))
    top = np.maximum(ceiling, start)
    moves = np.array([layer.name not in fixed for layer in layers])

    def shifted(offset: float) -> np.ndarray:
        return np.where(moves, np.clip(start + offset, bottom, top), start)

    corners = np.unique(np.concatenate([(bottom - start)[moves], (top - start)[moves], [0.0]]))
    values = np.array([float(size @ shifted(corner) / size.sum()) for corner in corners])
    right = int(np.clip(np.searchsorted(values, target), 1, len(corners) - 1)) if len(corners) > 1 else 0
    offset = corners[right]
    if right and values[right] > values[right - 1]:
        share = (target - values[right - 1]) / (values[right] - values[right - 1])
        offset = corners[right - 1] + share * (corners[right] - corners[right - 1])
    return {layer.name: float(s) for layer, s in zip(layers, shifted(float(offset)), strict=True)}


def reachable(
    layers: Sequence[Layer],
    sparsities: Mapping[str, float],
    fixed: frozenset[str] = frozenset(),
    ceiling: float = BUDGET_CEILING,
    pattern: Pattern = UNSTRUCTURED,
) -> tuple[float, float]:
    """Return the least and the greatest global sparsity that a common offset can lead to."""
    floors = _floors(layers, sparsities, pattern)
    least = {name: s if name in fixed else floors[name] for name, s in sparsities.items()}
    most = {name: s if name in fixed else max(s, ceiling) for name, s in sparsities.items()}
    return global_sparsity(layers, least), global_sparsity(layers, most)


def _floors(layers: Sequence[Layer], sparsities: Mapping[str, float], pattern: Pattern) -> dict[str, float]:
    """Return how far down each layer may be shifted: to 0, or to where it still takes the pattern that it takes."""
    taken = {layer.name: pattern.takes(layer.shape, sparsities[layer.name], layer.groups) for layer in layers}
    return {layer.name: pattern.least(layer.shape, layer.groups) if taken[layer.name] else 0.0 for layer in layers}


def inwards(least: float, most: float, digits: int = 4) -> str:
    """Return an interval as text, rounded so that both ends as written lie in it."""
    scale = 10**digits
    return f"{math.ceil(least * scale) / scale:.{digits}f} to {math.floor(most * scale) / scale:.{digits}f}"


def whole_weights(
    layers: Sequence[Layer],
    sparsities: Mapping[str, float],
    fixed: frozenset[str] = frozenset(),
    ceiling: float = BUDGET_CEILING,
    pattern: Pattern = UNSTRUCTURED,
) -> dict[str, float]:
    """Move sparsities by a few weights, so that whole weights add up to the global sparsity.

    A mask prunes floor(sparsity * n) weights, so a model of many small layers falls short of its budget. The
    weights that floor loses go to the layers that lost the largest parts of one. With a pattern of blocks it is
    blocks that floor loses, and whole blocks that go.

    Args:
        layers: The model's prunable layers.
        sparsities: Sparsity of every layer.
        fixed: Names of the layers that stay as they are.
        ceiling: Sparsity that no layer is moved beyond.
        pattern: Pattern of the masks.

    Returns:
        Sparsities whose masks prune round(global sparsity * N) weights, where layers have that many to give; layers
        at 0, at the least sparsity of their pattern, or at the ceiling stay, too, and none is emptied. With blocks they
        prune less than the smallest block of a layer below that.
    """
    exact = {layer.name: layer.size * sparsities[layer.name] for layer in layers}
    unit = {layer.name: pattern.unit if pattern.fits(layer.shape, layer.groups) else 1 for layer in layers}
    counts = {name: math.floor(value) // unit[name] * unit[name] for name, value in exact.items()}
    floors = _floors(layers, sparsities, pattern)
    inside = [name for name, s in sparsities.items() if name not in fixed and floors[name] < s < ceiling]
    lost = round(sum(exact.values())) - sum(counts.values())
    inside.sort(key=lambda name: (counts[name] - exact[name]) / unit[name])
    most = {layer.name: min(math.floor(ceiling * layer.size), layer.size - 1) for layer in layers}
    while open_layers := [n for n in inside if unit[n] <= lost and counts[n] + unit[n] <= most[n]]:
        for name in open_layers:
            if unit[name] <= lost:
                counts[name] += unit[name]
                lost -= unit[name]
    moved = {*inside, *(name for name in unit if unit[name] > 1)}
    sizes = {layer.name: layer.size for layer in layers}
    return {name: sparsity_of(counts[name], sizes[name]) if name in moved else s for name, s in sparsities.items()}


def with_pattern(layers: Sequence[Layer], sparsities: Mapping[str, float], pattern: Pattern) -> dict[str, float]:
    """Return sparsities at which every layer that a pattern fits takes it, of the same global sparsity.

    Layers are raised to 1 - N/M, and all are shifted by one common offset to make up for it.

    Args:
        layers: The model's prunable layers.
        sparsities: Sparsity of every layer.
        pattern: The pattern.

    Raises:
        MmpError: if the global sparsity is less than what the pattern alone prunes.
    """
    if pattern == UNSTRUCTURED:
        return dict(sparsities)
    raised = {layer.name: max(sparsities[layer.name], pattern.least(layer.shape, layer.groups)) for layer in layers}
    shifted = meet_budget(layers, raised, global_sparsity(layers, sparsities), pattern=pattern)
    return whole_weights(layers, shifted, pattern=pattern)
