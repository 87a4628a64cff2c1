"""The structure of pruning in one model: what is kept or pruned as a whole, and what therefore has a sparsity.

Without a structure, weights are pruned one by one, and every layer has a sparsity. With ``pattern=channels``, whole
channels are pruned, and every group of coupled channels has one. Ranges, strategies, budgets, schedules and searches
use this interface and work on both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from mmp.errors import MmpError
from mmp.pruning.budgets import Budget, Shift, global_sparsity
from mmp.pruning.counts import pruned_count
from mmp.pruning.layers.layer import Layer, count_weights, groups_of
from mmp.pruning.masks import Masks, make_grid
from mmp.pruning.patterns import UNSTRUCTURED, Channels, Pattern
from mmp.pruning.ranges import Range, RangeTable, allow_pattern, constrain, observed_ranges, require_roles, rule_ranges
from mmp.pruning.sizes import Sizes


class Structure(Protocol):
    """What is pruned as a whole in one model."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What has a range, a sparsity and a tensor of scores."""

    @property
    def weights(self) -> tuple[Layer, ...]:
        """The model's prunable layers, which get the masks."""

    @property
    def pattern(self) -> Pattern | Channels:
        """The pattern of the masks, as it is written on the command line."""

    def allowed(self, ranges: Mapping[str, Range]) -> dict[str, Range]:
        """Return ranges, by layer name, within what the structure permits."""

    def to_budget(
        self, sparsities: Mapping[str, float], table: RangeTable, budget: Budget, strategy: str, subject: str
    ) -> dict[str, float]:
        """Return sparsities that the masks have exactly, shifted by one common offset to a budget if there is one.

        Args:
            sparsities: Sparsity of every layer, by name.
            table: The range table, whose constraints limit the shift.
            budget: The budget.
            strategy: The name under which the budget may have a target of its own.
            subject: The owner of the sparsities, such as ``strategy p50``, for the error message.

        Raises:
            MmpError: if the budget is out of reach; the message states the limits.
        """

    def pruned(self, sparsities: Mapping[str, float]) -> int:
        """Return how many weights, or parameters of removed channels, are pruned at these sparsities."""

    def sparsity(self, sparsities: Mapping[str, float]) -> float:
        """Return the sparsity of the whole model that a budget refers to, in [0, 1]."""

    def summary(self, sparsities: Mapping[str, float]) -> dict[str, Any]:
        """Return the totals of a plan at these sparsities; see :meth:`mmp.pruning.plan.Plan.summary`."""

    def grid(
        self,
        scores: Mapping[str, Tensor],
        strategies: Mapping[str, Mapping[str, float]],
        fraction: float = 1.0,
    ) -> dict[str, Masks]:
        """Return the masks of several strategies.

        Args:
            scores: The scores of every layer, by name, as :attr:`layers` has them; higher is more important.
            strategies: The sparsity of every layer, by strategy and by layer name.
            fraction: Multiplies all sparsities, for a schedule. Masks for rising fractions contain each other.
        """


@dataclass(frozen=True)
class SingleWeights:
    """Weights are pruned one by one, or in the blocks of a pattern.

    Attributes:
        layers: The model's prunable layers.
        pattern: Pattern of the masks, in every layer that takes it.
        sizes: Bytes of the model's parts; only budgets and totals need it.
        parameters: Number of all parameters of the model; only totals need it.
    """

    layers: tuple[Layer, ...]
    pattern: Pattern = UNSTRUCTURED
    sizes: Sizes | None = None
    parameters: int = 0

    @property
    def weights(self) -> tuple[Layer, ...]:
        """The model's prunable layers, which have ranges and masks."""
        return self.layers

    def allowed(self, ranges: Mapping[str, Range]) -> dict[str, Range]:
        """Return ranges with lo raised to the lowest sparsity at which the pattern holds, in layers that reach it."""
        return allow_pattern(self.layers, ranges, self.pattern)

    def to_budget(
        self, sparsities: Mapping[str, float], table: RangeTable, budget: Budget, strategy: str, subject: str
    ) -> dict[str, float]:
        """Return sparsities shifted to the budget (:class:`mmp.pruning.budgets.Shift`)."""
        assert self.sizes is not None
        shift = Shift.of(self.layers, table, self.pattern)
        return shift.to_budget(sparsities, budget.target(strategy, self.sizes), subject)

    def pruned(self, sparsities: Mapping[str, float]) -> int:
        """Return the number of pruned weights: the sum of floor(sparsity * n) over the layers."""
        return sum(pruned_count(sparsities[layer.name], layer.size) for layer in self.layers)

    def sparsity(self, sparsities: Mapping[str, float]) -> float:
        """Return the sparsity over all prunable weights."""
        return global_sparsity(self.layers, sparsities)

    def summary(self, sparsities: Mapping[str, float]) -> dict[str, Any]:
        """Return the totals of a plan at these sparsities."""
        assert self.sizes is not None
        pruned = self.pruned(sparsities)
        patterned = count_weights(x for x in self.layers if self.pattern.takes(x, sparsities[x.name]))
        return {
            "sparsity": pruned / self.sizes.weights,
            "sparsity_all": pruned / self.parameters,
            "parameters_left": self.parameters - pruned,
            "bytes": self.sizes.sparse(pruned),
            **({} if self.pattern == UNSTRUCTURED else {"patterned": patterned / self.sizes.weights}),
        }

    def grid(
        self,
        scores: Mapping[str, Tensor],
        strategies: Mapping[str, Mapping[str, float]],
        fraction: float = 1.0,
    ) -> dict[str, Masks]:
        """Return the masks of several strategies (:func:`mmp.pruning.masks.make_grid`)."""
        return make_grid(scores, strategies, self.pattern, fraction, groups_of(self.layers))


def masks_at(
    structure: Structure, scores: Mapping[str, Tensor], sparsities: Mapping[str, float], fraction: float = 1.0
) -> Masks:
    """Return the masks of one set of sparsities; the arguments are as in :meth:`Structure.grid`."""
    return structure.grid(scores, {"": sparsities}, fraction)[""]


def require_weights(structure: Structure, layers: Iterable[Layer]) -> None:
    """Check that a structure is one of a model with these prunable layers.

    Raises:
        MmpError: if the names or the shapes of the weights differ; the message names the first.
    """
    own, given = ({layer.name: tuple(layer.shape) for layer in of} for of in (structure.weights, layers))
    for name in [*given, *own]:
        if own.get(name) != given.get(name):
            found, expected = (f"the shape {of[name]}" if name in of else "no such weight" for of in (given, own))
            raise MmpError(
                f"pattern={structure.pattern}: the structure is of another model: {name!r} has {expected} there, but "
                f"this model has {found}; make the structure from this model"
            )


def ranges_of(
    structure: Structure,
    table: RangeTable,
    observations: Iterable[Mapping[str, float]] | None = None,
) -> dict[str, Range]:
    """Return the range of every layer, by name, under the table's constraints and within what the structure permits.

    Args:
        structure: What is pruned as a whole.
        table: The range table.
        observations: Layer sparsities under criteria at global sparsities. With them the ranges are observed, without
            them they follow the rules.

    Raises:
        MmpError: if the rules do not fit the layers, or the table is observed and there are no observations.
    """
    layers = structure.layers
    require_roles(table, layers)
    if observations is None and table.observed:
        raise MmpError(
            f"ranges={table.name} is observed, so it needs observations; compute them with mmp.pruning.criteria.observe"
        )
    source = rule_ranges(layers, table.rules) if observations is None else observed_ranges(layers, observations)
    return structure.allowed(constrain(layers, source, table.constraints))
