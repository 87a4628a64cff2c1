"""Ranges: how sparse each layer may become (phase 1 of the method).

Two sources give every prunable layer an interval [lo, hi]: a *rule table* that reads the architecture, or
*observed* layer sparsities of global pruning criteria. Constraints then hold on top of either. Tables are
data: a new architecture is a new YAML file under ``conf/ranges``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mmp.errors import MmpError, nearest
from mmp.pruning.layers.layer import ROLES, Layer
from mmp.pruning.patterns import Pattern


@dataclass(frozen=True)
class Range:
    """Sparsity allowed in one layer, as fractions of its weights.

    Raises:
        MmpError: unless 0 <= lo <= hi <= 1.
    """

    lo: float
    hi: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.lo <= self.hi <= 1.0:
            raise MmpError(f"range [{self.lo}, {self.hi}] is not a sparsity range: need 0 <= lo <= hi <= 1")

    def at(self, position: float) -> float:
        """Return the sparsity at ``position`` in [0, 1]: lo + position * (hi - lo), exact at both ends."""
        return min(self.hi, max(self.lo, (1 - position) * self.lo + position * self.hi))


@dataclass(frozen=True)
class Selector:
    """Which layers a rule or a group means; every field that is set must hold.

    ``position`` and ``rank`` are taken among the layers that satisfy all the other fields of the selector.

    Attributes:
        role: Roles, one of which the layer has.
        stage: Stages (0-based), one of which the layer lies in.
        depth: Half-open interval [a, b) of ``Layer.depth``; b = 1 includes 1.
        position: Half-open interval [a, b) of i / (n - 1) among the selected layers; b = 1 includes 1.
        rank: Half-open interval [a, b) of places in the order of size; 0 is the largest.
        name: Regular expression searched in the layer's name.
        min_size: Fewest weights.
    """

    role: tuple[str, ...] = ()
    stage: tuple[int, ...] = ()
    depth: tuple[float, float] | None = None
    position: tuple[float, float] | None = None
    rank: tuple[int, int] | None = None
    name: str | None = None
    min_size: int = 0

    def __post_init__(self) -> None:
        for role in self.role:
            if role not in ROLES:
                raise MmpError(f"ranges: unknown role {role!r}; {nearest(role, ROLES)}")
        for what in ("depth", "position", "rank"):
            interval = getattr(self, what)
            if interval is not None and interval[0] >= interval[1]:
                raise MmpError(f"ranges: {what}={list(interval)} is empty; an interval [a, b) needs a < b")
        try:
            re.compile(self.name or "")
        except re.error as error:
            raise MmpError(f"ranges: name={self.name!r} is not a regular expression ({error})") from error

    def select(self, layers: Sequence[Layer]) -> list[Layer]:
        """Return the layers meant, in the order given."""
        chosen = [
            layer
            for layer in layers
            if (not self.role or layer.role in self.role)
            and (not self.stage or layer.stage in self.stage)
            and (self.depth is None or _inside(layer.depth, self.depth))
            and (self.name is None or re.search(self.name, layer.name))
            and layer.size >= self.min_size
        ]
        if self.position is not None:
            last = max(len(chosen) - 1, 1)
            chosen = [layer for i, layer in enumerate(chosen) if _inside(i / last, self.position)]
        if self.rank is not None:
            by_size = sorted(chosen, key=lambda layer: -layer.size)[self.rank[0] : self.rank[1]]
            chosen = [layer for layer in chosen if layer in by_size]
        return chosen


def _inside(value: float, interval: tuple[float, float]) -> bool:
    return interval[0] <= value < interval[1] or value == interval[1] == 1.0


@dataclass(frozen=True)
class Rule:
    """One line of a rule table: these layers get this range."""

    select: Selector
    range: Range


@dataclass(frozen=True)
class RuleTable:
    """An architecture's knowledge: ranges per kind of layer.

    Attributes:
        name: The table's name, for messages.
        rules: Disjoint rules.
        default: The range of layers that no rule names; without it, such a layer is an error.
        strict: Whether a rule that matches no layer is an error. True for the table of one architecture,
            false for a table meant for all.
    """

    name: str
    rules: tuple[Rule, ...]
    default: Range | None = None
    strict: bool = True


@dataclass(frozen=True)
class Constraints:
    """What holds whatever the source of the ranges says (METHOD, phase 1).

    Attributes:
        small_below: Layers with fewer weights than this get the range ``small``; 0 turns the rule off.
        small: Range of small layers.
        patch_embed: Range of a transformer's patch embedding; None leaves it to the source.
        ceiling: No layer may become sparser than this, so none is ever emptied.
    """

    small_below: int = 10_000
    small: Range = field(default_factory=lambda: Range(0.0, 0.10))
    patch_embed: Range | None = field(default_factory=lambda: Range(0.15, 0.30))
    ceiling: float = 0.98


@dataclass(frozen=True)
class RangeTable:
    """Where the ranges of an architecture come from, and what holds on top of them.

    Attributes:
        name: The table's name, for messages.
        rules: The rule table; an observed table may have one, to compare with.
        observed: Whether ranges come from observed sparsities in place of the rules.
        constraints: What holds on top of either source.
        groups: Selectors of each named group of layers (``late``, ``feature``), which strategies refer to.
    """

    name: str
    rules: RuleTable
    observed: bool = False
    constraints: Constraints = field(default_factory=Constraints)
    groups: Mapping[str, tuple[Selector, ...]] = field(default_factory=dict)

    def small(self, layers: Sequence[Layer]) -> frozenset[str]:
        """Return the names of small layers, which no budget moves."""
        return frozenset(layer.name for layer in layers if layer.size < self.constraints.small_below)


def rule_ranges(layers: Sequence[Layer], table: RuleTable) -> dict[str, Range]:
    """Return the range of every layer according to a rule table.

    Args:
        layers: The model's prunable layers.
        table: Rules, which must not overlap.

    Raises:
        MmpError: if two rules claim one layer, a rule of a strict table matches nothing, or a layer is left
            without a range.
    """
    claimed: dict[str, tuple[int, Range]] = {}
    for number, rule in enumerate(table.rules, start=1):
        matched = rule.select.select(layers)
        if not matched and table.strict:
            raise MmpError(
                f"ranges={table.name}: rule {number} ({_describe(rule.select)}) matches no layer of this model; "
                "use the table of its architecture, or ranges=generic"
            )
        for layer in matched:
            if layer.name in claimed:
                raise MmpError(
                    f"ranges={table.name}: rules {claimed[layer.name][0]} and {number} both match layer "
                    f"{layer.name!r} ({layer.role}); make them disjoint"
                )
            claimed[layer.name] = (number, rule.range)
    ranges = {}
    for layer in layers:
        allowed = claimed[layer.name][1] if layer.name in claimed else table.default
        if allowed is None:
            raise MmpError(
                f"ranges={table.name}: no rule matches layer {layer.name!r} ({layer.role}) and the table has no "
                "default; add one"
            )
        ranges[layer.name] = allowed
    return ranges


def observed_ranges(layers: Sequence[Layer], observations: Iterable[Mapping[str, float]]) -> dict[str, Range]:
    """Return [min, max] of every layer's sparsity over several pruned models (METHOD, phase 1, ``observed``).

    Args:
        layers: The model's prunable layers.
        observations: One mapping from layer name to sparsity for each criterion at each global target.

    Raises:
        MmpError: if there are no observations.
    """
    seen = list(observations)
    if not seen:
        raise MmpError("ranges=observed needs at least one criterion and one target; see ranges.criteria")
    return {layer.name: Range(min(o[layer.name] for o in seen), max(o[layer.name] for o in seen)) for layer in layers}


def constrain(layers: Sequence[Layer], ranges: Mapping[str, Range], constraints: Constraints) -> dict[str, Range]:
    """Return the ranges with the constraints on top; a small layer's rule wins over the patch embedding's."""
    result = {}
    for layer in layers:
        allowed = ranges[layer.name]
        if layer.role == "patch_embed" and constraints.patch_embed is not None:
            allowed = constraints.patch_embed
        if layer.size < constraints.small_below:
            allowed = constraints.small
        result[layer.name] = Range(min(allowed.lo, constraints.ceiling), min(allowed.hi, constraints.ceiling))
    return result


def allow_pattern(layers: Sequence[Layer], ranges: Mapping[str, Range], pattern: Pattern) -> dict[str, Range]:
    """Return the ranges with lo raised to where a pattern can hold, in every layer whose range goes as far.

    A layer whose hi is below that, or whose shape the pattern does not fit, keeps its range, and has no pattern.
    """
    result = dict(ranges)
    for layer in layers:
        allowed = ranges[layer.name]
        if pattern.takes(layer.shape, allowed.hi, layer.groups):
            result[layer.name] = Range(max(allowed.lo, pattern.least(layer.shape, layer.groups)), allowed.hi)
    return result


def resolve_groups(layers: Sequence[Layer], groups: Mapping[str, Sequence[Selector]]) -> dict[str, frozenset[str]]:
    """Return the layer names in each named group, such as ``late`` and ``feature`` of strategies 9 and 10."""
    return {
        name: frozenset(layer.name for s in chosen for layer in s.select(layers)) for name, chosen in groups.items()
    }


def _describe(selector: Selector) -> str:
    fields = {k: v for k, v in vars(selector).items() if v not in ((), None, 0)}
    return ", ".join(f"{k}={v}" for k, v in fields.items()) or "every layer"
