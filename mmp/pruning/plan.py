"""The plan of a model: its layers, their ranges, and every layer's sparsity under every strategy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from mmp.errors import MmpError
from mmp.pruning.budgets import Budget
from mmp.pruning.layers.coverage import Coverage, coverage
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.prunable import find_layers
from mmp.pruning.patterns import UNSTRUCTURED, Channels, Pattern
from mmp.pruning.plan_text import as_text
from mmp.pruning.ranges import Range, RangeTable, constrain, resolve_groups, rule_ranges
from mmp.pruning.sizes import Sizes
from mmp.pruning.strategies import Strategy, layer_sparsities
from mmp.pruning.structure import SingleWeights, Structure, ranges_of, require_weights

_NO_BUDGET = Budget()


@dataclass(frozen=True)
class Plan:
    """The sparsity of every layer of a model under every strategy; ``print(plan)`` shows it as two tables.

    Attributes:
        model: The model's name.
        parameters: Number of all its parameters.
        structure: What is pruned as a whole: single weights, or whole channels.
        ranges: The range of each layer, by name.
        sparsities: The sparsity of each layer, by strategy and by layer name; fractions.
        sizes: Bytes of the model's parts.
        table: Range table, budget and pattern in words.
        rules: If ``ranges`` are observed, the ranges of the rule table for comparison.
        coverage: The parameters outside of all prunable layers, by reason.
    """

    model: str
    parameters: int
    structure: Structure
    ranges: Mapping[str, Range]
    sparsities: Mapping[str, Mapping[str, float]]
    sizes: Sizes
    table: str = ""
    rules: Mapping[str, Range] | None = None
    coverage: Coverage = field(default_factory=Coverage)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The prunable layers, or with ``pattern=channels`` a record for each group of channels."""
        return self.structure.layers

    @property
    def pattern(self) -> Pattern | Channels:
        """The pattern of the masks, in every layer that takes it."""
        return self.structure.pattern

    @cached_property
    def pruned(self) -> dict[str, int]:
        """Number of pruned weights of each strategy; with ``pattern=channels``, of removed parameters."""
        return {name: self.structure.pruned(sparsities) for name, sparsities in self.sparsities.items()}

    def by_sparsity(self) -> list[str]:
        """Return the strategies' names in ascending order of pruned weights."""
        return sorted(self.sparsities, key=lambda name: (self.pruned[name], name))

    def patterned(self, layer: Layer, strategy: str) -> bool:
        """Return whether a layer's mask satisfies the pattern under a strategy."""
        sparsity = self.sparsities[strategy][layer.name]
        return sparsity > 0 if isinstance(self.pattern, Channels) else self.pattern.takes(layer, sparsity)

    def require_pattern(self) -> None:
        """Check that every strategy makes at least one layer sparse enough for the pattern.

        Raises:
            MmpError: on the first strategy that does not.
        """
        pattern = self.pattern
        if isinstance(pattern, Channels):
            return
        for strategy in self.sparsities:
            if not any(self.patterned(layer, strategy) for layer in self.layers):
                raise MmpError(
                    f"pattern={pattern} needs layers that are {100 * (1 - pattern.kept / pattern.of):g} "
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
            prunable weights that are in layers with the pattern. With ``pattern=channels``, all of these are of the
            smaller network: ``sparsity_all`` is the share of all parameters that is removed, which a budget refers to,
            and ``multiply_adds`` is the share of the dense network's that is left.
        """
        return self.structure.summary(self.sparsities[strategy])

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
        """Return the plan as text, as :func:`mmp.pruning.plan_text.as_text` does."""
        return as_text(self)


def plan_model(
    model: nn.Module,
    table: RangeTable,
    strategies: Iterable[Strategy],
    budget: Budget = _NO_BUDGET,
    observations: Iterable[Mapping[str, float]] | None = None,
    name: str | None = None,
    pattern: Pattern = UNSTRUCTURED,
    structure: Structure | None = None,
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
        structure: What is pruned as a whole, if it is not the blocks of a pattern: for instance the channels of
            :class:`mmp.pruning.channels.structure.WholeChannels`.

    Raises:
        MmpError: if the model has no prunable layer, the table does not fit it, the structure is of another model, or
            the budget is out of reach.

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
    sizes, parameters = Sizes.of(model, layers), sum(p.numel() for p in model.parameters())
    structure = structure or SingleWeights(layers, pattern, sizes, parameters)
    require_weights(structure, layers)
    seen = None if observations is None else list(observations)
    ranges = ranges_of(structure, table, seen)
    return Plan(
        model=name or type(model).__name__,
        parameters=parameters,
        structure=structure,
        ranges=ranges,
        sparsities={s.name: choose_sparsities(s, ranges, table, structure, budget) for s in strategies},
        sizes=sizes,
        table=f"ranges {table.name}"
        + (f", budget {budget}" if str(budget) else "")
        + ("" if structure.pattern == UNSTRUCTURED else f", pattern {structure.pattern}"),
        rules=None if seen is None or not table.rules.rules else _ranges_by_rule(layers, table),
        coverage=coverage(model, layers),
    )


def _ranges_by_rule(layers: Sequence[Layer], table: RangeTable) -> dict[str, Range]:
    return constrain(layers, rule_ranges(layers, table.rules), table.constraints)


def choose_sparsities(
    strategy: Strategy, ranges: Mapping[str, Range], table: RangeTable, structure: Structure, budget: Budget
) -> dict[str, float]:
    """Return a strategy's sparsity of every layer, by name, shifted to the budget if there is one.

    Args:
        strategy: The strategy.
        ranges: The constrained range of every layer, by name.
        table: The range table, which defines the groups of layers that the strategy names.
        structure: What is pruned as a whole, and the layers.
        budget: The budget.

    Raises:
        MmpError: if the budget is out of reach; the message states the limits.
    """
    sparsities = layer_sparsities(strategy, structure.layers, ranges, resolve_groups(structure.layers, table.groups))
    return structure.to_budget(sparsities, table, budget, strategy.name, f"strategy {strategy.name}")
