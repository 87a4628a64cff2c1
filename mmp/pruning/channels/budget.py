"""Budgets of whole channels: group sparsities shifted by one common offset to what the smaller network may cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmp.errors import MmpError
from mmp.pruning.budgets import BUDGET_CEILING, Budget, inwards
from mmp.pruning.channels.costs import Costs
from mmp.pruning.channels.masks import whole_steps
from mmp.pruning.counts import floor_product
from mmp.pruning.layers.layer import Layer
from mmp.pruning.ranges import RangeTable
from mmp.pruning.sizes import MEGABYTE

_HALVINGS = 40  # of an offset in [-1, 1]


@dataclass(frozen=True)
class Allowance:
    """What the smaller network may cost.

    Attributes:
        key: The setting, for messages.
        most: The highest cost.
        left: Returns the cost, given the number of sets that each group loses.
        value: Returns the value of the setting that allows a cost.
        unit: What that value counts, in words.
        digits: Decimal places of the value in messages.
    """

    key: str
    most: int
    left: Callable[[Sequence[int]], int]
    value: Callable[[int], float]
    unit: str
    digits: int = 4

    @classmethod
    def of(cls, budget: Budget, strategy: str, costs: Costs) -> Allowance | None:
        """Return what a budget allows, None if it sets nothing.

        Args:
            budget: The budget.
            strategy: The name of the strategy, which may have a target of its own.
            costs: The costs of the network.
        """
        if budget.megabytes is not None:
            key, most = f"budget.megabytes={budget.megabytes:g}", floor_product(budget.megabytes, MEGABYTE)
            unit = f"MB (the dense network has {costs.bytes / MEGABYTE:.3f} MB)"
            return cls(key, most, costs.bytes_left, lambda cost: cost / MEGABYTE, unit, 3)
        if budget.macs is not None:
            key, most = f"budget.macs={budget.macs:g}", floor_product(budget.macs, costs.multiply_adds)
            unit = "of the multiply-adds"
            return cls(key, most, costs.multiply_adds_left, lambda cost: cost / costs.multiply_adds, unit)
        sparsity = budget.of(strategy)
        if sparsity is None:
            return None
        key, most = f"budget={sparsity:g}", floor_product(1 - sparsity, costs.parameters)
        return cls(key, most, costs.parameters_left, lambda cost: 1 - cost / costs.parameters, "of all parameters")


@dataclass(frozen=True)
class ChannelShift:
    """Shifts the sparsities of groups by one common offset.

    Attributes:
        layers: A layer record for each group.
        steps: For each group, the number of sets that are kept or pruned together, so that layers keep multiples.
        fixed: Names of the groups whose sparsity stays (``ranges.constraints.small_below``).
        ceiling: Sparsity that no group is shifted beyond.
    """

    layers: Sequence[Layer]
    steps: Sequence[int]
    fixed: frozenset[str] = frozenset()
    ceiling: float = BUDGET_CEILING

    @classmethod
    def of(cls, layers: Sequence[Layer], steps: Sequence[int], table: RangeTable) -> ChannelShift:
        """Return the shift that a range table allows."""
        return cls(layers, steps, table.small(layers), min(BUDGET_CEILING, table.constraints.ceiling))

    def counts(self, sparsities: Mapping[str, float], offset: float = 0.0) -> list[int]:
        """Return the number of sets that each group loses, rounded down to whole steps.

        Args:
            sparsities: The sparsity of each group, by name.
            offset: Is added to all of them.
        """
        counts = []
        for layer, step in zip(self.layers, self.steps, strict=True):
            share = sparsities[layer.name]
            if layer.name not in self.fixed:
                share = min(max(share + offset, 0.0), max(self.ceiling, share))
            counts.append(whole_steps(share, layer.shape[0], step))
        return counts

    def to_budget(self, sparsities: Mapping[str, float], allowance: Allowance, subject: str) -> list[int]:
        """Return the number of sets that each group loses, so that the network costs at most what is allowed.

        It costs less than that by at most one step of one group.

        Args:
            sparsities: The sparsity of each group, by name.
            allowance: What the smaller network may cost.
            subject: The owner of the sparsities, such as ``strategy p50``, for the error message.

        Raises:
            MmpError: if no offset leads there; the message states the limits.
        """
        least, most = (allowance.left(self.counts(sparsities, offset)) for offset in (1.0, -1.0))
        if not least <= allowance.most <= most:
            low, high = sorted(map(allowance.value, (least, most)))
            limits = inwards(low, high, allowance.digits)
            raise MmpError(
                f"{allowance.key} is out of reach: {subject} can be shifted to {limits} {allowance.unit}, since only "
                f"channels in groups are removed, in whole multiples{self._rules()}"
            )
        low, high = -1.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if allowance.left(self.counts(sparsities, middle)) <= allowance.most:
                high = middle
            else:
                low = middle
        return self._finish(sparsities, low, high, allowance)

    def _finish(self, sparsities: Mapping[str, float], low: float, high: float, allowance: Allowance) -> list[int]:
        """Return counts between those of two offsets, of which only the higher one satisfies the allowance.

        Of the groups that reach their next step at the same offset, as few as possible take it. Where that saves more
        than needed, other groups get steps back, the largest that fit first.
        """
        counts, goal = self.counts(sparsities, low), self.counts(sparsities, high)
        while (cost := allowance.left(counts)) > allowance.most:
            steps = {n: self._moved(counts, n, 1) for n, count in enumerate(counts) if count < goal[n]}
            saved = {n: cost - allowance.left(after) for n, after in steps.items()}
            enough = [n for n in saved if saved[n] >= cost - allowance.most]
            counts = steps[min(enough, key=saved.__getitem__) if enough else max(saved, key=saved.__getitem__)]
        movable = [n for n, layer in enumerate(self.layers) if layer.name not in self.fixed]
        while movable := [n for n in movable if counts[n] > 0]:
            backs = [(allowance.left(after := self._moved(counts, n, -1)), after, n) for n in movable]
            fitting = [back for back in backs if back[0] <= allowance.most]
            movable = [n for *_, n in fitting]  # a step that does not fit now costs no less after others
            if fitting:
                _, counts, _ = max(fitting)
        return counts

    def _rules(self) -> str:
        """Return the rules that limit the shift further, in words."""
        rules = []
        if self.ceiling < BUDGET_CEILING:
            rules.append(f"no group loses more than {100 * self.ceiling:g} % (ranges.constraints.ceiling)")
        if self.fixed:
            rules.append(f"small groups stay (ranges.constraints.small_below=0 turns this off): {len(self.fixed)}")
        return "".join(f"; {rule}" for rule in rules)

    def _moved(self, counts: Sequence[int], number: int, steps: int) -> list[int]:
        """Return the counts after a group has lost one more step (1), or one step less (-1)."""
        sets, step = self.layers[number].shape[0], self.steps[number]
        kept = sets - counts[number]
        kept = (kept - 1) // step * step if steps > 0 else min(sets, (kept // step + 1) * step)
        return [*counts[:number], sets - kept, *counts[number + 1 :]]
