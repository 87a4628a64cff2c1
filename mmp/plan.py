"""The plan: layers, their ranges and the strategies' sparsities, before anything is trained.

``python -m mmp.plan model=swin_tiny ranges=swin`` prints it; :func:`make_plan` makes it of any ``nn.Module``;
``prune.py`` goes by the same functions, so what the plan says is what a run does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mmp.cli import command, quiet
from mmp.conf import choices_of, choose
from mmp.config import BudgetConfig, PlanConfig, RangesConfig, StrategyConfig, register
from mmp.errors import MmpError, nearest
from mmp.keep import pruned_count
from mmp.layers import Layer, prunable_layers
from mmp.patterns import UNSTRUCTURED, Pattern
from mmp.ranges import Range, allow_pattern, constrain, observed_ranges, resolve_groups, rule_ranges
from mmp.sizes import MEGABYTE, Sizes
from mmp.strategies import BUDGET_CEILING, Strategy, inwards, layer_sparsities, meet_budget, reachable, whole_weights
from mmp.tables import build_constraints, build_groups, build_rule_table, build_strategy
from mmp.validate import read_budget, read_ranges, validate

register()


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
        from mmp.plan_views import as_text

        return as_text(self)


def make_plan(
    model: nn.Module,
    ranges: RangesConfig | str = "generic",
    strategies: Iterable[Strategy] | None = None,
    budget: BudgetConfig | float | None = None,
    observations: Iterable[Mapping[str, float]] | None = None,
    name: str | None = None,
    pattern: Pattern | str = UNSTRUCTURED,
) -> Plan:
    """Return the plan of a model.

    Args:
        model: Any module, on any device, ``meta`` included.
        ranges: A rule table, or the name of one in ``conf/ranges``.
        strategies: Strategies; all in ``conf/strategy`` if None.
        budget: What every strategy is shifted to meet; a number is a global sparsity.
        observations: Layer sparsities under criteria at global targets, for observed ranges.
        name: What to call the model; its class if None.
        pattern: What masks satisfy, such as ``2:4``.

    Raises:
        MmpError: if the model has no prunable layer, the table does not fit it, the budget is out of reach, or there is
            no such pattern.
    """
    if isinstance(ranges, str):
        ranges = read_ranges(choose("ranges", ranges))
    budget, pattern = read_budget(budget), Pattern.parse(str(pattern))
    chosen = [load_strategy(n) for n in choices_of("strategy")] if strategies is None else list(strategies)
    _check_budget_names(budget, chosen)
    layers = prunable_layers(model)
    sizes = Sizes.of(model, layers)
    allowed = layer_ranges(layers, ranges, observations, pattern=pattern)
    return Plan(
        model=name or type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=layers,
        ranges=allowed,
        sparsities={s.name: choose_sparsities(s, layers, allowed, ranges, budget, sizes, pattern) for s in chosen},
        sizes=sizes,
        table=f"ranges {ranges.name}{_budget_text(budget)}"
        + ("" if pattern == UNSTRUCTURED else f", pattern {pattern}"),
        rules=layer_ranges(layers, ranges, rules=True) if observations is not None and ranges.rules else None,
        pattern=pattern,
    )


def _budget_text(budget: BudgetConfig) -> str:
    parts = [f"{budget.megabytes:g} MB"] if budget.megabytes is not None else []
    parts += [f"{100 * budget.sparsity:g} %"] if budget.sparsity is not None else []
    parts += [f"{name} {100 * value:g} %" for name, value in budget.strategies.items()]
    return f", budget {', '.join(parts)}" if parts else ""


def layer_ranges(
    layers: Sequence[Layer],
    ranges: RangesConfig,
    observations: Iterable[Mapping[str, float]] | None = None,
    rules: bool = False,
    pattern: Pattern = UNSTRUCTURED,
) -> dict[str, Range]:
    """Return the range of every layer: observed if there are observations, else by the rules; constrained.

    With a pattern lo is raised to where it can hold, in every layer whose range goes as far.

    Args:
        layers: The model's prunable layers.
        ranges: The table.
        observations: Layer sparsities under criteria at global targets; needed if the table says ``observed``.
        rules: Take the rules all the same, to compare with.
        pattern: What masks satisfy.

    Raises:
        MmpError: if the rules do not fit the layers, or observed ranges lack observations.
    """
    if observations is None and ranges.source == "observed" and not rules:
        raise MmpError(f"ranges={ranges.name} is observed, so it needs observations (mmp.calibration)")
    if observations is None:
        source = rule_ranges(layers, build_rule_table(ranges))
    else:
        source = observed_ranges(layers, observations)
    return allow_pattern(layers, constrain(layers, source, build_constraints(ranges)), pattern)


def choose_sparsities(
    strategy: Strategy,
    layers: Sequence[Layer],
    allowed: Mapping[str, Range],
    ranges: RangesConfig,
    budget: BudgetConfig,
    sizes: Sizes,
    pattern: Pattern = UNSTRUCTURED,
) -> dict[str, float]:
    """Return a strategy's sparsity of every layer, shifted to its budget if it has one.

    Args:
        strategy: The strategy.
        layers: The model's prunable layers.
        allowed: The constrained range of each.
        ranges: The table, for its groups and for what counts as a small layer, which no budget moves.
        budget: The budget.
        sizes: Bytes of the model's parts, for a budget in megabytes.
        pattern: What masks satisfy.

    Raises:
        MmpError: if the budget is out of reach; the message says what can be reached.
    """
    sparsities = layer_sparsities(strategy, layers, allowed, resolve_groups(layers, build_groups(ranges)))
    target = budget_target(budget, strategy.name, sizes)
    return to_budget(f"strategy {strategy.name}", sparsities, target, layers, ranges, budget, sizes, pattern)


def to_budget(
    name: str,
    sparsities: Mapping[str, float],
    target: float | None,
    layers: Sequence[Layer],
    ranges: RangesConfig,
    budget: BudgetConfig,
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
        ranges: The table, for what counts as a small layer, which no budget moves.
        budget: What asks for the target, for the message.
        sizes: Bytes of the model's parts.
        pattern: What masks satisfy.

    Raises:
        MmpError: if the target is out of reach; the message says what can be reached.
    """
    if target is None:
        return {layer.name: pattern.whole(layer.shape, sparsities[layer.name], layer.groups) for layer in layers}
    ceiling = min(BUDGET_CEILING, ranges.constraints.ceiling)
    small = frozenset(layer.name for layer in layers if layer.size < ranges.constraints.small_below)
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


def budget_target(budget: BudgetConfig, strategy: str, sizes: Sizes) -> float | None:
    """Return the global sparsity that a budget asks of a strategy, None without a budget."""
    if budget.megabytes is not None:
        return sizes.sparsity_for(budget.megabytes * MEGABYTE)
    return budget.of(strategy)


def load_strategy(name: str) -> Strategy:
    """Return a strategy of ``conf/strategy`` by name."""
    return build_strategy(OmegaConf.to_object(OmegaConf.merge(StrategyConfig, choose("strategy", name))))  # type: ignore[arg-type]


def _check_budget_names(budget: BudgetConfig, strategies: Iterable[Strategy]) -> None:
    if not budget.strategies:
        return
    known = {*choices_of("strategy"), *(strategy.name for strategy in strategies)}
    for name in budget.strategies:
        if name not in known:
            raise MmpError(f"budget.strategies.{name}: no such strategy; {nearest(name, known)}")


def plan_of(config: PlanConfig) -> Plan:
    """Return the plan of a configuration; for observed ranges, of a dense model that is trained if it must be."""
    from mmp.models import build_skeleton

    configured = build_strategy(config.strategy)  # with what the command line says of it
    others = [load_strategy(name) for name in choices_of("strategy") if name != configured.name]
    strategies = [configured, *others]
    name = config.model.label or config.model.name
    if config.ranges.source == "rules":
        model = build_skeleton(config.model)
        return make_plan(model, config.ranges, strategies, config.budget, name=name, pattern=config.pattern)

    from mmp.calibration import Calibration
    from mmp.data import ImageData
    from mmp.dense import dense_model, device_of
    from mmp.models import fill_input

    fill_input(config)
    data = ImageData(config.data, config.seed)  # type: ignore[arg-type]
    model, _ = dense_model(config, data)
    calibration = Calibration.of(config, model, prunable_layers(model), data, device_of(config))
    observed = calibration.observe(config.ranges)
    return make_plan(model, config.ranges, strategies, config.budget, observed, name, config.pattern)


@hydra.main(version_base="1.3", config_path="../conf", config_name="plan")
def main(cfg: DictConfig) -> None:
    """Print the plan of a configuration, or the survey of all models whose names match a pattern."""
    from mmp.plan_views import draw_plan, render

    config: PlanConfig = validate(cfg)
    quiet()
    if any(sign in config.model.name for sign in "*?["):
        if config.picture:
            raise MmpError(f"picture={config.picture}: a picture shows one model, but model.name is a pattern")
        from mmp.survey import print_survey

        print_survey(config)
        return
    plan = plan_of(config)
    render(plan, config.format)
    if config.picture:
        draw_plan(plan, Path(config.picture))


if __name__ == "__main__":
    command(main)
