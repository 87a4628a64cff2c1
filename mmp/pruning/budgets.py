"""Budgets: sparsities shifted by one common offset to a global sparsity or a size in megabytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmp.errors import MmpError
from mmp.pruning.counts import floor_product, pruned_count, sparsity_of
from mmp.pruning.layers.layer import Layer, count_weights
from mmp.pruning.patterns import UNSTRUCTURED, Pattern
from mmp.pruning.ranges import RangeTable
from mmp.pruning.sizes import MEGABYTE, Sizes

BUDGET_CEILING = 0.98  # no budget makes a layer sparser than this
NEEDS_CHANNELS = "zeros save no multiply-adds, only removed channels do; set pattern=channels, or another budget"
_ROUNDING = 1e-9  # global sparsities that differ by no more than this are equal


@dataclass(frozen=True)
class Budget:
    """A global sparsity, or a size on disk, that strategies are shifted to. An empty budget shifts nothing.

    Attributes:
        sparsity: The global sparsity, a fraction of the prunable weights.
        megabytes: Size of the pruned model, in units of 10^6 bytes.
        strategies: Global sparsities of single strategies, which take precedence over ``sparsity``.
        macs: With ``pattern=channels``, the share of the dense network's multiply-adds that may be left. A global
            sparsity is then the share of all parameters that is removed.
    """

    sparsity: float | None = None
    megabytes: float | None = None
    strategies: Mapping[str, float] = field(default_factory=dict)
    macs: float | None = None

    def of(self, strategy: str) -> float | None:
        """Return the global sparsity that the budget sets for a strategy, None if it sets none."""
        return self.strategies.get(strategy, self.sparsity)

    def sets(self, strategy: str) -> bool:
        """Return whether the budget sets anything for a strategy."""
        return self.megabytes is not None or self.macs is not None or self.of(strategy) is not None

    def target(self, strategy: str, sizes: Sizes) -> Target | None:
        """Return the budget of one strategy on one model, None if there is none.

        Args:
            strategy: The strategy's name.
            sizes: Bytes of the model's parts, which turn a size into a sparsity.

        Raises:
            MmpError: if the budget counts multiply-adds.
        """
        if self.macs is not None:
            raise MmpError(f"budget.macs={self.macs:g}: {NEEDS_CHANNELS}")
        if self.megabytes is not None:
            return Target(sizes.sparsity_for(floor_product(self.megabytes, MEGABYTE)), sizes, self.megabytes)
        sparsity = self.of(strategy)
        return None if sparsity is None else Target(sparsity, sizes)

    def __str__(self) -> str:
        """Return the budget in words, empty if there is none."""
        parts = [f"{self.megabytes:g} MB"] if self.megabytes is not None else []
        parts += [f"{100 * self.macs:g} % of multiply-adds"] if self.macs is not None else []
        parts += [f"{100 * self.sparsity:g} %"] if self.sparsity is not None else []
        parts += [f"{name} {100 * value:g} %" for name, value in self.strategies.items()]
        return ", ".join(parts)


@dataclass(frozen=True)
class Target:
    """The budget of one strategy on one model, as a global sparsity.

    Attributes:
        sparsity: The global sparsity, a fraction of the prunable weights.
        sizes: Bytes of the model's parts.
        megabytes: The size that the sparsity was computed from, None if the budget is a sparsity.
    """

    sparsity: float
    sizes: Sizes
    megabytes: float | None = None

    def require_within(self, least: float, most: float, subject: str, reasons: str = "") -> None:
        """Raise if the target is outside the global sparsities that can be reached.

        Args:
            least: The lowest global sparsity that can be reached.
            most: The highest.
            subject: Start of the phrase that names these limits, such as ``strategy p50 can be shifted``.
            reasons: What sets the limits, in words.

        Raises:
            MmpError: if the target is outside [least, most]; the message states the limits in the budget's own unit.
        """
        if least - _ROUNDING <= self.sparsity <= most + _ROUNDING:
            return
        key, limits = f"budget={self.sparsity:g}", f"global sparsities from {inwards(least, most)}"
        if self.megabytes is not None:
            low, high = (self.sizes.sparse(round(share * self.sizes.weights)) / MEGABYTE for share in (most, least))
            key = f"budget.megabytes={self.megabytes:g}"
            dense = f"the dense model has {self.sizes.dense / MEGABYTE:.3f} MB"
            others = f"tensors other than weights {(self.sizes.others + self.sizes.masks) / MEGABYTE:.3f} MB"
            limits = f"sizes from {inwards(low, high, 3)} MB ({dense}, masks and {others})"
        raise MmpError(f"{key} is out of reach: {subject} to {limits}{reasons and f'; {reasons}'}")


@dataclass(frozen=True)
class Shift:
    """Shifts the sparsities of a model's layers by one common offset, within limits.

    Attributes:
        layers: The model's prunable layers.
        fixed: Names of the layers whose sparsity stays (small layers under the 10K rule).
        ceiling: Sparsity that no layer is shifted beyond; a layer that is already above it can only be shifted down.
        pattern: Pattern of the masks. A layer whose sparsity is high enough for the pattern is not shifted below the
            lowest sparsity at which the pattern holds.
    """

    layers: Sequence[Layer]
    fixed: frozenset[str] = frozenset()
    ceiling: float = BUDGET_CEILING
    pattern: Pattern = UNSTRUCTURED

    @classmethod
    def of(cls, layers: Sequence[Layer], table: RangeTable, pattern: Pattern = UNSTRUCTURED) -> Shift:
        """Return the shift that a range table allows: its small layers are fixed, its ceiling holds."""
        return cls(layers, table.small(layers), min(BUDGET_CEILING, table.constraints.ceiling), pattern)

    def to_budget(self, sparsities: Mapping[str, float], target: Target | None, subject: str) -> dict[str, float]:
        """Shift all sparsities so that the masks prune exactly the target number of weights.

        Without a target, return them unchanged. With a pattern of blocks, layers lose whole blocks: without a target
        their sparsities are rounded down to whole blocks, and a target is met to less than one block.

        Args:
            sparsities: Sparsity of every layer, by name.
            target: The budget.
            subject: The owner of the sparsities, such as ``strategy p50``, for the error message.

        Raises:
            MmpError: if the target is out of reach; the message states the limits.
        """
        if target is None:
            return {layer.name: self.pattern.whole(layer, sparsities[layer.name]) for layer in self.layers}
        least, most = self.reachable(sparsities)
        inside = least <= target.sparsity <= most
        reasons = "" if inside else self.limits(sparsities, upwards=target.sparsity > most)
        target.require_within(least, most, f"{subject} can be shifted", reasons)
        return self.whole_weights(self.meet(sparsities, target.sparsity))

    def reachable(self, sparsities: Mapping[str, float]) -> tuple[float, float]:
        """Return the lowest and the highest global sparsity that a common offset leads to."""
        floors = self._floors(sparsities)
        least = {name: s if name in self.fixed else floors[name] for name, s in sparsities.items()}
        most = {name: s if name in self.fixed else max(s, self.ceiling) for name, s in sparsities.items()}
        return global_sparsity(self.layers, least), global_sparsity(self.layers, most)

    def limits(self, sparsities: Mapping[str, float], upwards: bool) -> str:
        """Return the rules that limit the global sparsity of a common offset, with their weights, the strictest first.

        Args:
            sparsities: Sparsity of every layer, by name.
            upwards: Whether to name what limits a higher sparsity, or a lower one.
        """
        verb, shares = "prunes", self._floors(sparsities)
        others = f"pattern={self.pattern}"
        if upwards:
            verb, shares = "keeps", {name: 1 - max(s, self.ceiling) for name, s in sparsities.items()}
            others = f"the ceiling of {100 * self.ceiling:g} %"
            others += " (ranges.constraints.ceiling)" if self.ceiling < BUDGET_CEILING else ""
        shares |= {name: 1 - sparsities[name] if upwards else sparsities[name] for name in self.fixed}
        small = "the rule for small layers (ranges.constraints.small_below=0 turns it off)"
        counts = {small: list[float](), others: list[float]()}
        for layer in self.layers:
            counts[small if layer.name in self.fixed else others].append(layer.size * shares[layer.name])
        held = sorted(((round(sum(found)), len(found), rule) for rule, found in counts.items()), reverse=True)
        return ", ".join(
            f"{rule} {verb} {weights:,} weights of {layers} layer{'s' * (layers > 1)}"
            for weights, layers, rule in held
            if weights
        )

    def meet(self, sparsities: Mapping[str, float], target: float) -> dict[str, float]:
        """Shift every layer by one common offset so that the global sparsity is ``target``.

        The global sparsity is a piecewise linear, rising function of the offset, with a corner wherever a layer
        reaches its limit. The offset between two corners follows from one division (docs/method.md, phase 2, budget).

        Args:
            sparsities: Sparsity of every layer, by name.
            target: The global sparsity, a fraction.

        Returns:
            Shifted sparsities, clipped to [0, ceiling].

        Raises:
            MmpError: if no offset reaches the target; the message states the limits.
        """
        least, most = self.reachable(sparsities)
        if not least - _ROUNDING <= target <= most + _ROUNDING:
            raise MmpError(
                f"budget={target:g} is out of reach: this model's layers can be shifted to global sparsities from "
                f"{inwards(least, most)}; {self.limits(sparsities, upwards=target > most)}"
            )
        size = np.array([layer.size for layer in self.layers], dtype=float)
        start = np.array([sparsities[layer.name] for layer in self.layers])
        bottom = np.array(list(self._floors(sparsities).values()))
        top = np.maximum(self.ceiling, start)
        moves = np.array([layer.name not in self.fixed for layer in self.layers])

        def shifted(offset: float) -> np.ndarray:
            return np.where(moves, np.clip(start + offset, bottom, top), start)

        corners = np.unique(np.concatenate([(bottom - start)[moves], (top - start)[moves], [0.0]]))
        values = np.array([float(size @ shifted(corner) / size.sum()) for corner in corners])
        right = int(np.clip(np.searchsorted(values, target), 1, len(corners) - 1)) if len(corners) > 1 else 0
        offset = corners[right]
        if right and values[right] > values[right - 1]:
            share = (target - values[right - 1]) / (values[right] - values[right - 1])
            offset = corners[right - 1] + share * (corners[right] - corners[right - 1])
        return {layer.name: float(s) for layer, s in zip(self.layers, shifted(float(offset)), strict=True)}

    def whole_weights(self, sparsities: Mapping[str, float]) -> dict[str, float]:
        """Move sparsities by a few weights, so that whole weights add up to the global sparsity.

        A mask prunes floor(sparsity * n) weights, so a model of many small layers would miss its budget. The weights
        that rounding down leaves out are pruned in the layers with the largest fractional parts. With a pattern of
        blocks, the same holds for whole blocks.

        Args:
            sparsities: Sparsity of every layer, by name.

        Returns:
            Sparsities whose masks prune round(global sparsity * N) weights, if the layers can lose that many.
            Layers at 0, at the lowest sparsity of their pattern or at the ceiling keep their sparsity, and no layer
            loses all its weights. With blocks, the masks fall short by less than the smallest block.
        """
        exact = {layer.name: layer.size * sparsities[layer.name] for layer in self.layers}
        unit = {layer.name: self.pattern.unit if self.pattern.fits(layer) else 1 for layer in self.layers}
        counts = {
            layer.name: pruned_count(sparsities[layer.name], layer.size) // unit[layer.name] * unit[layer.name]
            for layer in self.layers
        }
        floors = self._floors(sparsities)
        inside = [n for n, s in sparsities.items() if n not in self.fixed and floors[n] < s < self.ceiling]
        lost = round(sum(exact.values())) - sum(counts.values())
        inside.sort(key=lambda name: (counts[name] - exact[name]) / unit[name])
        most = {layer.name: min(pruned_count(self.ceiling, layer.size), layer.size - 1) for layer in self.layers}
        while open_layers := [n for n in inside if unit[n] <= lost and counts[n] + unit[n] <= most[n]]:
            for name in open_layers:
                if unit[name] <= lost:
                    counts[name] += unit[name]
                    lost -= unit[name]
        moved = {*inside, *(name for name in unit if unit[name] > 1)}
        sizes = {layer.name: layer.size for layer in self.layers}
        return {name: sparsity_of(counts[name], sizes[name]) if name in moved else s for name, s in sparsities.items()}

    def _floors(self, sparsities: Mapping[str, float]) -> dict[str, float]:
        """Return the lowest sparsity of each layer: 0, or the lowest at which a layer that has the pattern keeps it."""
        return {
            layer.name: self.pattern.least(layer) if self.pattern.takes(layer, sparsities[layer.name]) else 0.0
            for layer in self.layers
        }


def global_sparsity(layers: Sequence[Layer], sparsities: Mapping[str, float]) -> float:
    """Return the sparsity over all prunable weights: the mean of the layers' sparsities, weighted by size."""
    return sum(layer.size * sparsities[layer.name] for layer in layers) / count_weights(layers)


def with_pattern(layers: Sequence[Layer], sparsities: Mapping[str, float], pattern: Pattern) -> dict[str, float]:
    """Return sparsities of the same global sparsity at which the pattern holds in every layer that it fits.

    Layers below 1 - N/M are raised to it, then all are shifted down by one common offset to make up for that.

    Args:
        layers: The model's prunable layers.
        sparsities: Sparsity of every layer, by name.
        pattern: The pattern.

    Raises:
        MmpError: if the global sparsity is lower than the pattern alone makes it.
    """
    if pattern == UNSTRUCTURED:
        return dict(sparsities)
    raised = {layer.name: max(sparsities[layer.name], pattern.least(layer)) for layer in layers}
    shift = Shift(layers, pattern=pattern)
    return shift.whole_weights(shift.meet(raised, global_sparsity(layers, sparsities)))


def inwards(least: float, most: float, digits: int = 4) -> str:
    """Return an interval as text, rounded so that both written ends are inside it."""
    scale = 10**digits
    low, high = round(least * scale, 4), round(most * scale, 4)  # without the errors of floating point
    return f"{math.ceil(low) / scale:.{digits}f} to {math.floor(high) / scale:.{digits}f}"
