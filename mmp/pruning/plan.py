"""The plan of a model: its layers, their ranges, and the sparsity of each layer under each strategy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from mmp.errors import MmpError
from mmp.pruning.budgets import Budget, budget_target, to_budget
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.prunable import prunable_layers
from mmp.pruning.patterns import UNSTRUCTURED, Pattern
from mmp.pruning.ranges import Range, RangeTable, allow_pattern, constrain, observed_ranges, resolve_groups, rule_ranges
from mmp.pruning.sizes import MEGABYTE, Sizes
from mmp.pruning.strategies import Strategy, layer_sparsities
from mmp.pruning.topk import pruned_count

_NO_BUDGET = Budget()


@dataclass(frozen=True)
class Plan:
    """What pruning will do to a model.

    Attributes:
        model: The model's name.
        parameters: Number of all its parameters.
        layers: Its prunable layers.
        ranges: Sparsity allowed in each.
        sparsities: Per strategy, the sparsity of each layer.
        sizes: Bytes of its parts.
        table: What the ranges come from, and the budget if there is one, in words.
        rules: The rule table's ranges, to compare with, where ``ranges`` were observed.
        pattern: What the masks satisfy, in every layer that takes it.
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

    @cached_property
    def pruned(self) -> dict[str, int]:
        """Number of pruned weights per strategy: floor(sparsity * n) in each layer."""
        return {
            name: sum(pruned_count(sparsities[layer.name], layer.size) for layer in self.layers)
            for name, sparsities in self.sparsities.items()
        }

    def by_sparsity(self) -> list[str]:
        """Return the strategies' names, the least sparse first."""
        return sorted(self.sparsities, key=lambda name: (self.pruned[name], name))

    def patterned(self, layer: Layer, strategy: str) -> bool:
        """Return whether a layer's mask will satisfy the pattern under a strategy."""
        return self.pattern.takes(layer.shape, self.sparsities[strategy][layer.name], layer.groups)

    def summary(self, strategy: str) -> dict[str, Any]:
        """Return a strategy's sparsity over prunable weights and over all parameters, what is left, and the bytes.

        With a pattern also ``patterned``, the share of the prunable weights whose layers satisfy it.
        """
        pruned = self.pruned[strategy]
        patterned = sum(layer.size for layer in self.layers if self.patterned(layer, strategy))
        return {
            "sparsity": pruned / self.sizes.weights,
            "sparsity_all": pruned / self.parameters,
            "parameters_left": self.parameters - pruned,
            "bytes": self.sizes.sparse(pruned),
            **({} if self.pattern == UNSTRUCTURED else {"patterned": patterned / self.sizes.weights}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "prunable": self.sizes.weights,
            "bytes": self.sizes.dense,
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
        """Return the plan as text."""
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
        table: Where the ranges of its layers come from.
        strategies: Rules from each layer's range to its sparsity.
        budget: What every strategy is shifted to meet.
        observations: Layer sparsities under criteria at global targets, for observed ranges.
        name: What to call the model; its class if None.
        pattern: What masks satisfy.

    Raises:
        MmpError: if the model has no prunable layer, the table does not fit it, or the budget is out of reach.
    """
    layers = prunable_layers(model)
    sizes = Sizes.of(model, layers)
    seen = None if observations is None else list(observations)
    allowed = layer_ranges(layers, table, seen, pattern=pattern)
    return Plan(
        model=name or type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=layers,
        ranges=allowed,
        sparsities={s.name: choose_sparsities(s, layers, allowed, table, budget, sizes, pattern) for s in strategies},
        sizes=sizes,
        table=f"ranges {table.name}"
        + (f", budget {budget}" if str(budget) else "")
        + ("" if pattern == UNSTRUCTURED else f", pattern {pattern}"),
        rules=layer_ranges(layers, table, rules=True) if seen is not None and table.rules.rules else None,
        pattern=pattern,
    )


def layer_ranges(
    layers: Sequence[Layer],
    table: RangeTable,
    observations: Iterable[Mapping[str, float]] | None = None,
    rules: bool = False,
    pattern: Pattern = UNSTRUCTURED,
) -> dict[str, Range]:
    """Return the range of every layer: observed if there are observations, else by the rules; constrained.

    With a pattern lo is raised to where it can hold, in every layer whose range goes as far.

    Args:
        layers: The model's prunable layers.
        table: The range table.
        observations: Layer sparsities under criteria at global targets; needed if the table says ``observed``.
        rules: Take the rules all the same, to compare with.
        pattern: What masks satisfy.

    Raises:
        MmpError: if the rules do not fit the layers, or observed ranges lack observations.
    """
    if observations is None and table.observed and not rules:
        raise MmpError(f"ranges={table.name} is observed, so it needs observations (mmp.runs.calibration)")
    source = rule_ranges(layers, table.rules) if observations is None else observed_ranges(layers, observations)
    return allow_pattern(layers, constrain(layers, source, table.constraints), pattern)


def choose_sparsities(
    strategy: Strategy,
    layers: Sequence[Layer],
    allowed: Mapping[str, Range],
    table: RangeTable,
    budget: Budget,
    sizes: Sizes,
    pattern: Pattern = UNSTRUCTURED,
) -> dict[str, float]:
    """Return a strategy's sparsity of every layer, shifted to its budget if it has one.

    Args:
        strategy: The strategy.
        layers: The model's prunable layers.
        allowed: The constrained range of each.
        table: The range table, for its groups and for what counts as a small layer, which no budget moves.
        budget: The budget.
        sizes: Bytes of the model's parts, for a budget in megabytes.
        pattern: What masks satisfy.

    Raises:
        MmpError: if the budget is out of reach; the message says what can be reached.
    """
    sparsities = layer_sparsities(strategy, layers, allowed, resolve_groups(layers, table.groups))
    target = budget_target(budget, strategy.name, sizes)
    return to_budget(f"strategy {strategy.name}", sparsities, target, layers, table, budget, sizes, pattern)


_LAYER_HEADINGS = ("layer", "role", "stage", "weights", "range (%)")
_WORDS = frozenset({"layer", "role", "pattern", "strategy"})
_STRATEGY_HEADINGS = ("strategy", "sparsity (%)", "of all parameters (%)", "parameters left", "MB")


def as_text(plan: Plan) -> str:
    """Return the two tables as text, at least as wide as they need."""
    tables = [aligned(*_layer_table(plan)), aligned(*_strategy_table(plan))]
    return "\n\n".join([_title(plan), *tables, _note(plan)]) + "\n"


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in columns as wide as their cells: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if heading in _WORDS else cell.rjust(width)
            for cell, width, heading in zip(cells, widths, headings, strict=True)
        )
        for cells in (headings, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _layer_table(plan: Plan) -> tuple[tuple[str, ...], list[list[str]]]:
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
    """Return the pattern of a layer, or why it has none."""
    if not plan.pattern.fits(layer.shape, layer.groups):
        return "no: shape"
    taken, strategies = sum(plan.patterned(layer, name) for name in plan.sparsities), len(plan.sparsities)
    if not taken:
        return "no: range"
    return str(plan.pattern) if taken == strategies else f"{plan.pattern} in {taken} of {strategies}"


def _strategy_table(plan: Plan) -> tuple[tuple[str, ...], list[list[str]]]:
    rows = []
    for name in plan.by_sparsity():
        facts = plan.summary(name)
        sparsities = [f"{100 * facts[key]:.2f}" for key in ("sparsity", "sparsity_all")]
        rows.append([name, *sparsities, f"{facts['parameters_left']:,}", f"{facts['bytes'] / MEGABYTE:.2f}"])
        rows[-1] += [f"{100 * facts['patterned']:.2f}"] if "patterned" in facts else []
    return (*_STRATEGY_HEADINGS, *([] if plan.pattern == UNSTRUCTURED else [f"in {plan.pattern} (%)"])), rows


def _title(plan: Plan) -> str:
    return (
        f"{plan.model}: {plan.parameters:,} parameters, {plan.sizes.weights:,} prunable in {len(plan.layers)} layers; "
        f"{plan.table}"
    )


def _note(plan: Plan) -> str:
    return (
        "MB (10^6 bytes): kept weights, one bit per prunable weight that says where they belong, and all other "
        f"tensors. Dense: {plan.sizes.dense / MEGABYTE:.2f} MB."
    )
