"""Ranges: how sparse each layer may become (docs/method.md, phase 1).

The interval [lo, hi] of a prunable layer comes from one of two sources: a *rule table* for the architecture, or the
layer's sparsities *observed* under global pruning criteria. Constraints apply on top of either. Tables are data: a new
architecture is a new YAML file in ``conf/ranges``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mmp.errors import MmpError, nearest
from mmp.pruning.layers.layer import GROUP_ROLES, ROLES, Layer
from mmp.pruning.patterns import Pattern


@dataclass(frozen=True)
class Range:
    """The sparsities allowed in one layer, as fractions of its weights.

    Attributes:
        lo: The lowest.
        hi: The highest.

    Raises:
        MmpError: unless 0 <= lo <= hi <= 1.
    """

    lo: float
    hi: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.lo <= self.hi <= 1.0:
            raise MmpError(f"range [{self.lo}, {self.hi}] is not a sparsity range: need 0 <= lo <= hi <= 1")

    def at(self, position: float) -> float:
        """Return the sparsity at a position in [0, 1]: lo + position * (hi - lo), exact at both ends.

        Example:
            >>> Range(0.5, 0.75).at(0.5)
            0.625
        """
        return min(self.hi, max(self.lo, (1 - position) * self.lo + position * self.hi))


@dataclass(frozen=True)
class Selector:
    """A condition on layers, for a rule or a group. Every field that is set must hold.

    ``position`` and ``rank`` count only the layers that satisfy all other fields of the selector.

    Attributes:
        role: The layer has one of these roles.
        stage: The layer is in one of these stages (0-based).
        depth: ``Layer.depth`` is in the half-open interval [a, b); b = 1 includes 1.
        position: i / (n - 1) of the n selected layers is in the half-open interval [a, b); b = 1 includes 1.
        rank: The layer's place in descending order of size, from 0, is in the half-open interval [a, b).
        name: A regular expression that is found in the layer's name.
        min_size: The layer has at least this many weights.

    Raises:
        MmpError: on an unknown role, an empty interval or an invalid regular expression.
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
            if role not in (*ROLES, *GROUP_ROLES):
                raise MmpError(f"ranges: unknown role {role!r}; {nearest(role, (*ROLES, *GROUP_ROLES))}")
        for what in ("depth", "position", "rank"):
            interval = getattr(self, what)
            if interval is not None and interval[0] >= interval[1]:
                raise MmpError(f"ranges: {what}={list(interval)} is empty; an interval [a, b) needs a < b")
        try:
            re.compile(self.name or "")
        except re.error as error:
            raise MmpError(f"ranges: name={self.name!r} is not a regular expression ({error})") from error

    def select(self, layers: Sequence[Layer]) -> list[Layer]:
        """Return the layers that satisfy the condition, in the given order."""
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
    """One line of a rule table.

    Attributes:
        select: The layers that it applies to.
        range: Their range.
    """

    select: Selector
    range: Range


@dataclass(frozen=True)
class RuleTable:
    """Ranges by kind of layer, for one architecture or for all.

    Attributes:
        name: The table's name, for messages.
        rules: Rules that do not overlap.
        default: The range of layers that no rule matches; if None, such a layer is an error.
        strict: Whether a rule that matches no layer is an error: true for the table of one architecture, false for a
            table that is meant for all.
    """

    name: str
    rules: tuple[Rule, ...]
    default: Range | None = None
    strict: bool = True


@dataclass(frozen=True)
class Constraints:
    """Limits on the ranges of either source (docs/method.md, phase 1).

    Attributes:
        small_below: Layers with fewer weights than this get the range ``small`` (the 10K rule); 0 turns the rule off.
        small: Range of small layers.
        patch_embed: Range of a transformer's patch embedding; None leaves it to the source.
        ceiling: Highest sparsity of any layer, so that no layer loses all its weights.
    """

    small_below: int = 10_000
    small: Range = field(default_factory=lambda: Range(0.0, 0.10))
    patch_embed: Range | None = field(default_factory=lambda: Range(0.15, 0.30))
    ceiling: float = 0.98


@dataclass(frozen=True)
class RangeTable:
    """The source of a model's ranges, with the constraints on them and the groups of layers that strategies name.

    Attributes:
        name: The table's name, for messages.
        rules: The rule table; with observed ranges it may serve for comparison.
        observed: Whether ranges come from observed sparsities instead of the rules.
        constraints: Limits on the ranges of either source.
        groups: Selectors of each named group of layers (``late``, ``feature``).
    """

    name: str
    rules: RuleTable
    observed: bool = False
    constraints: Constraints = field(default_factory=Constraints)
    groups: Mapping[str, tuple[Selector, ...]] = field(default_factory=dict)

    def small(self, layers: Sequence[Layer]) -> frozenset[str]:
        """Return the names of the layers under the 10K rule, whose sparsity no budget changes."""
        return frozenset(layer.name for layer in layers if layer.size < self.constraints.small_below)

    @property
    def dimensions(self) -> bool:
        """Whether a rule is for dimensions of attention heads, which then take the place of whole heads."""
        return any("attn_dims" in rule.select.role for rule in self.rules.rules)


def require_roles(table: RangeTable, layers: Sequence[Layer]) -> None:
    """Require that a table names roles of what is pruned: of layers, or of groups of channels.

    Args:
        table: The range table.
        layers: The model's prunable layers, or a record for each of its groups of channels.

    Raises:
        MmpError: if all roles in the table's rules are of the other kind.
    """
    named = {role for rule in table.rules.rules for role in rule.select.role}
    if not named:
        return
    if layers[0].role in GROUP_ROLES and not named & set(GROUP_ROLES):
        raise MmpError(
            f"ranges={table.name} has rules for layers, but pattern=channels prunes groups of channels; set "
            "ranges=channels"
        )
    if layers[0].role not in GROUP_ROLES and not named & set(ROLES):
        raise MmpError(
            f"ranges={table.name} has rules for groups of channels, which only pattern=channels prunes; set "
            "pattern=channels, or other ranges such as ranges=generic"
        )


def rule_ranges(layers: Sequence[Layer], table: RuleTable) -> dict[str, Range]:
    """Return the range of every layer, by name, from a rule table.

    Args:
        layers: The model's prunable layers.
        table: The rule table.

    Raises:
        MmpError: if two rules match one layer, a rule of a strict table matches no layer, or a layer matches no rule
            and the table has no default.
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
    """Return the range of every layer, by name: [min, max] of its observed sparsities (docs/method.md, phase 1).

    Args:
        layers: The model's prunable layers.
        observations: One mapping from layer name to sparsity for each criterion at each global sparsity.

    Raises:
        MmpError: if there are no observations.
    """
    seen = list(observations)
    if not seen:
        raise MmpError("ranges=observed needs at least one criterion and one target; see ranges.criteria")
    return {layer.name: Range(min(o[layer.name] for o in seen), max(o[layer.name] for o in seen)) for layer in layers}


def constrain(layers: Sequence[Layer], ranges: Mapping[str, Range], constraints: Constraints) -> dict[str, Range]:
    """Return the ranges under the constraints, by layer name.

    For a layer that is both small and a patch embedding, the 10K rule applies.

    Args:
        layers: The model's prunable layers.
        ranges: The range of every layer, by name.
        constraints: The constraints.
    """
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
    """Return the ranges, by layer name, with lo raised to the lowest sparsity at which a pattern holds.

    A layer whose hi is lower than that, or whose shape the pattern does not fit, keeps its range, and its weights are
    pruned one by one.

    Args:
        layers: The model's prunable layers.
        ranges: The range of every layer, by name.
        pattern: Pattern of the masks.
    """
    result = dict(ranges)
    for layer in layers:
        allowed = ranges[layer.name]
        if pattern.takes(layer, allowed.hi):
            result[layer.name] = Range(max(allowed.lo, pattern.least(layer)), allowed.hi)
    return result


def resolve_groups(layers: Sequence[Layer], groups: Mapping[str, Sequence[Selector]]) -> dict[str, frozenset[str]]:
    """Return the names of the layers in each group, such as ``late`` and ``feature`` of strategies 9 and 10.

    Args:
        layers: The model's prunable layers.
        groups: Selectors of each group, by its name; a layer in any of them is in the group.
    """
    return {
        name: frozenset(layer.name for s in chosen for layer in s.select(layers)) for name, chosen in groups.items()
    }


def _describe(selector: Selector) -> str:
    fields = {k: v for k, v in vars(selector).items() if v not in ((), None, 0)}
    return ", ".join(f"{k}={v}" for k, v in fields.items()) or "every layer"
