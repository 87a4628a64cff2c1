"""The plan of a model: its layers, their ranges, and every layer's sparsity under every strategy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from mmp.errors import MmpError
from mmp.pruning.budgets import Budget, Shift, Target
from mmp.pruning.counts import pruned_count
from mmp.pruning.layers.coverage import Coverage, coverage
from mmp.pruning.layers.layer import Layer, count_weights
from mmp.pruning.layers.prunable import find_layers
from mmp.pruning.patterns import UNSTRUCTURED, Pattern
from mmp.pruning.ranges import Range, RangeTable, allow_pattern, constrain, observed_ranges, resolve_groups, rule_ranges
from mmp.pruning.sizes import MEGABYTE, Sizes
from mmp.pruning.strategies import Strategy, layer_sparsities

_NO_BUDGET = Budget()


@dataclass(frozen=True)
class Plan:
    """The sparsity of every layer of a model under every strategy; ``print(plan)`` shows it as two tables.

    Attributes:
        model: The model's name.
        parameters: Number of all its parameters.
        layers: Its prunable layers.
        ranges: The range of each layer, by name.
        sparsities: The sparsity of each layer, by strategy and by layer name; fractions.
        sizes: Bytes of the model's parts.
        table: Range table, budget and pattern in words.
        rules: If ``ranges`` are observed, the ranges of the rule table for comparison.
        pattern: Pattern of the masks, in every layer that takes it.
        coverage: The parameters outside of all prunable layers, by reason.
    """

    model: str
    parameters: int
    layers: tuple[Layer, ...]
    ranges: Mapping[str, Range]
    sparsities: Mapping[str, Mapping[str, float]]
    sizes: Sizes
    table: str = ""
    rules: Mapping[str, Range] | None = None
    pattern: Pattern = UNSTRUCTURED
    coverage: Coverage = field(default_factory=Coverage)

    @cached_property
    def pruned(self) -> dict[str, int]:
        """Number of pruned weights of each strategy: the sum of floor(sparsity * n) over the layers."""
        return {
            name: sum(pruned_count(sparsities[layer.name], layer.size) for layer in self.layers)
            for name, sparsities in self.sparsities.items()
        }

    def by_sparsity(self) -> list[str]:
        """Return the strategies' names in ascending order of pruned weights."""
        return sorted(self.sparsities, key=lambda name: (self.pruned[name], name))

    def patterned(self, layer: Layer, strategy: str) -> bool:
        """Return whether a layer's mask satisfies the pattern under a strategy."""
        return self.pattern.takes(layer, self.sparsities[strategy][layer.name])

    def require_pattern(self) -> None:
        """Check that every strategy makes at least one layer sparse enough for the pattern.

        Raises:
            MmpError: on the first strategy that does not.
        """
        for strategy in self.sparsities:
            if not any(self.patterned(layer, strategy) for layer in self.layers):
                raise MmpError(
                    f"pattern={self.pattern} needs layers that are {100 * (1 - self.pattern.kept / self.pattern.of):g} "
                    f"% sparse, but strategy={strategy} leaves every layer of a fitting shape less sparse "
                    f"({self.table}); raise the budget, or choose other ranges"
                )

    def summary(self, strategy: str) -> dict[str, Any]:
        """Return a strategy's totals.

        Args:
            strategy: The strategy's name.

        Returns:
            ``sparsity`` (of the prunable weights) and ``sparsity_all`` (of all parameters), fractions;
            ``parameters_left``; ``bytes`` of the pruned model; with a pattern also ``patterned``, the share of the
            prunable weights that are in layers with the pattern.
        """
        pruned = self.pruned[strategy]
        patterned = count_weights(layer for layer in self.layers if self.patterned(layer, strategy))
        return {
            "sparsity": pruned / self.sizes.weights,
            "sparsity_all": pruned / self.parameters,
            "parameters_left": self.parameters - pruned,
            "bytes": self.sizes.sparse(pruned),
            **({} if self.pattern == UNSTRUCTURED else {"patterned": patterned / self.sizes.weights}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data for JSON; sparsities are fractions."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "prunable": self.sizes.weights,
            "bytes": self.sizes.dense,
            "uncovered": self.coverage.to_dict(),
            **({} if self.pattern == UNSTRUCTURED else {"pattern": str(self.pattern)}),
            "layers": [
                {
                    "name": layer.name,
                    "role": layer.role,
                    "stage": layer.stage,
                    "depth": layer.depth,
                    "shape": list(layer.shape),
                    "size": layer.size,
                    "lo": self.ranges[layer.name].lo,
                    "hi": self.ranges[layer.name].hi,
                    **({} if self.rules is None else {"rule": [self.rules[layer.name].lo, self.rules[layer.name].hi]}),
                }
                for layer in self.layers
            ],
            "strategies": {
                name: {**self.summary(name), "layers": dict(self.sparsities[name])} for name in self.by_sparsity()
            },
        }

    def __str__(self) -> str:
        """Return the plan as text, as :func:`as_text` does."""
        return as_text(self)


def plan_model(
    model: nn.Module,
    table: RangeTable,
    strategies: Iterable[Strategy],
    budget: Budget = _NO_BUDGET,
    observations: Iterable[Mapping[str, float]] | None = None,
    name: str | None = None,
    pattern: Pattern = UNSTRUCTURED,
) -> Plan:
    """Return the plan of a model.

    Args:
        model: Any module, on any device, ``meta`` included.
        table: The range table.
        strategies: Strategies, each of which gives every layer a sparsity in its range.
        budget: The global sparsity or size that every strategy is shifted to.
        observations: Layer sparsities under criteria at global sparsities, for observed ranges.
        name: The model's name in the plan; its class if None.
        pattern: Pattern of the masks.

    Raises:
        MmpError: if the model has no prunable layer, the table does not fit it, or the budget is out of reach.

    Example:
        >>> from torch import nn
        >>> from mmp.pruning.ranges import Range, RangeTable, RuleTable
        >>> from mmp.pruning.strategies import Strategy
        >>> model = nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 10))
        >>> table = RangeTable("mine", RuleTable("mine", rules=(), default=Range(0.5, 0.9)))
        >>> plan = plan_model(model, table, [Strategy("balanced", position=0.5), Strategy("aggressive", position=1.0)])
        >>> plan.sparsities["balanced"]
        {'0.weight': 0.7, '2.weight': 0.7}
        >>> print(plan)
        Sequential: 795,010 parameters, 794,000 prunable in 2 layers; ranges mine
        <BLANKLINE>
        layer     role        stage  weights    range (%)
        0.weight  other              784,000  50.0 - 90.0
        2.weight  classifier          10,000  50.0 - 90.0
        <BLANKLINE>
        strategy    sparsity (%)  of all parameters (%)  parameters left    MB
        balanced           70.00                  69.91          239,210  1.06
        aggressive         90.00                  89.89           80,410  0.42
        <BLANKLINE>
        MB (10^6 bytes): kept weights, a mask of one bit per prunable weight, and all other tensors. Dense: 3.18 MB.
        No prunable layer covers 0.1 % of the parameters: biases, norms and scales 0.1 %.
        <BLANKLINE>
    """
    layers = find_layers(model)
    sizes = Sizes.of(model, layers)
    seen = None if observations is None else list(observations)
    ranges = layer_ranges(layers, table, seen, pattern=pattern)
    shift = Shift.of(layers, table, pattern)
    return Plan(
        model=name or type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=layers,
        ranges=ranges,
        sparsities={
            s.name: choose_sparsities(s, ranges, table, shift, budget.target(s.name, sizes)) for s in strategies
        },
        sizes=sizes,
        table=f"ranges {table.name}"
        + (f", budget {budget}" if str(budget) else "")
        + ("" if pattern == UNSTRUCTURED else f", pattern {pattern}"),
        rules=layer_ranges(layers, table, rules=True) if seen is not None and table.rules.rules else None,
        pattern=pattern,
        coverage=coverage(model, layers),
    )


def layer_ranges(
    layers: Sequence[Layer],
    table: RangeTable,
    observations: Iterable[Mapping[str, float]] | None = None,
    rules: bool = False,
    pattern: Pattern = UNSTRUCTURED,
) -> dict[str, Range]:
    """Return the range of every layer, by name, under the table's constraints.

    With a pattern, lo is raised to the lowest sparsity at which it holds, in every layer whose range reaches that far.

    Args:
        layers: The model's prunable layers.
        table: The range table.
        observations: Layer sparsities under criteria at global sparsities. With them the ranges are observed, without
            them they follow the rules.
        rules: Follow the rules even if the table is observed, for comparison.
        pattern: Pattern of the masks.

    Raises:
        MmpError: if the rules do not fit the layers, or the table is observed and there are no observations.
    """
    if observations is None and table.observed and not rules:
        raise MmpError(
            f"ranges={table.name} is observed, so it needs observations; compute them with mmp.pruning.criteria.observe"
        )
    source = rule_ranges(layers, table.rules) if observations is None else observed_ranges(layers, observations)
    return allow_pattern(layers, constrain(layers, source, table.constraints), pattern)


def choose_sparsities(
    strategy: Strategy, ranges: Mapping[str, Range], table: RangeTable, shift: Shift, target: Target | None
) -> dict[str, float]:
    """Return a strategy's sparsity of every layer, by name, shifted to the budget if there is one.

    Args:
        strategy: The strategy.
        ranges: The constrained range of every layer, by name.
        table: The range table, which defines the groups of layers that the strategy names.
        shift: The layers, and the limits within which a budget shifts them.
        target: The strategy's budget.

    Raises:
        MmpError: if the budget is out of reach; the message states the limits.
    """
    sparsities = layer_sparsities(strategy, shift.layers, ranges, resolve_groups(shift.layers, table.groups))
    return shift.to_budget(sparsities, target, f"strategy {strategy.name}")


_LAYER_HEADINGS = ("layer", "role", "stage", "weights", "range (%)")
_WORDS = frozenset({"layer", "role", "pattern", "strategy"})
_STRATEGY_HEADINGS = ("strategy", "sparsity (%)", "of all parameters (%)", "parameters left", "MB")


def as_text(plan: Plan) -> str:
    """Return a plan as text: a title, a table of layers, a table of strategies, and a note on the sizes."""
    tables = [aligned(*layer_table(plan)), aligned(*strategy_table(plan))]
    return "\n\n".join([title_of(plan), *tables, note_of(plan)]) + "\n"


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with columns as wide as their cells: words aligned left, numbers aligned right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if heading in _WORDS else cell.rjust(width)
            for cell, width, heading in zip(cells, widths, headings, strict=True)
        )
        for cells in (headings, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def layer_table(plan: Plan) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the headings and the rows of the table of layers; ranges in percent."""
    rows = [
        [
            layer.name,
            layer.role,
            "" if layer.stage is None else str(layer.stage),
            f"{layer.size:,}",
            f"{100 * plan.ranges[layer.name].lo:.1f} - {100 * plan.ranges[layer.name].hi:.1f}",
        ]
        for layer in plan.layers
    ]
    if plan.pattern == UNSTRUCTURED:
        return _LAYER_HEADINGS, rows
    for row, layer in zip(rows, plan.layers, strict=True):
        row.append(_pattern_of(plan, layer))
    return (*_LAYER_HEADINGS, "pattern"), rows


def _pattern_of(plan: Plan, layer: Layer) -> str:
    """Return the pattern of a layer, or the reason why it has none."""
    if not plan.pattern.fits(layer):
        return "no: shape"
    taken, strategies = sum(plan.patterned(layer, name) for name in plan.sparsities), len(plan.sparsities)
    if not taken:
        return "no: range"
    return str(plan.pattern) if taken == strategies else f"{plan.pattern} in {taken} of {strategies}"


def strategy_table(plan: Plan) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the headings and the rows of the table of strategies; sparsities in percent, sizes in 10^6 bytes."""
    rows = []
    for name in plan.by_sparsity():
        facts = plan.summary(name)
        sparsities = [f"{100 * facts[key]:.2f}" for key in ("sparsity", "sparsity_all")]
        rows.append([name, *sparsities, f"{facts['parameters_left']:,}", f"{facts['bytes'] / MEGABYTE:.2f}"])
        rows[-1] += [f"{100 * facts['patterned']:.2f}"] if "patterned" in facts else []
    return (*_STRATEGY_HEADINGS, *([] if plan.pattern == UNSTRUCTURED else [f"in {plan.pattern} (%)"])), rows


def title_of(plan: Plan) -> str:
    """Return the line above the tables: the model, its parameters and its layers, ranges, budget and pattern."""
    return (
        f"{plan.model}: {plan.parameters:,} parameters, {plan.sizes.weights:,} prunable in {len(plan.layers)} layers; "
        f"{plan.table}"
    )


def note_of(plan: Plan) -> str:
    """Return the lines below the tables, on the sizes and on the parameters outside of all layers."""
    return (
        "MB (10^6 bytes): kept weights, a mask of one bit per prunable weight, and all other tensors. "
        f"Dense: {plan.sizes.dense / MEGABYTE:.2f} MB.\n{plan.coverage.describe()}"
    )
