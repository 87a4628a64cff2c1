"""The plan: layers, their ranges and the strategies' sparsities, before anything is trained.

``python -m mmp.plan model=swin_tiny ranges=swin`` prints it; :func:`make_plan` makes it of any ``nn.Module``;
``prune.py`` goes by the same functions, so what the plan says is what a run does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from mmp.config.choices import FOLDER, choices_of, choose
from mmp.config.objects import build_budget, build_range_table, build_strategy
from mmp.config.schema import BudgetConfig, PlanConfig, RangesConfig
from mmp.config.validate import read_budget, read_ranges, read_strategy, validate
from mmp.errors import MmpError, nearest
from mmp.pruning.budgets import Budget
from mmp.pruning.layers.prunable import prunable_layers
from mmp.pruning.patterns import UNSTRUCTURED, Pattern
from mmp.pruning.plan import Plan, plan_model
from mmp.pruning.ranges import RangeTable
from mmp.pruning.strategies import Strategy

if TYPE_CHECKING:
    from omegaconf import DictConfig


def make_plan(
    model: nn.Module,
    ranges: RangeTable | RangesConfig | str = "generic",
    strategies: Iterable[Strategy] | None = None,
    budget: Budget | BudgetConfig | float | None = None,
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
    found, pattern = load_budget(budget), Pattern.parse(str(pattern))
    chosen = load_strategies() if strategies is None else list(strategies)
    _check_budget_names(found, chosen)
    return plan_model(model, load_ranges(ranges), chosen, found, observations, name, pattern)


def load_ranges(ranges: RangeTable | RangesConfig | str) -> RangeTable:
    """Return a range table: one that is built, the configuration of one, or one of ``conf/ranges`` by name.

    Raises:
        MmpError: if there is no such table, or it is not well-formed.
    """
    if isinstance(ranges, RangeTable):
        return ranges
    return build_range_table(read_ranges(choose("ranges", ranges)) if isinstance(ranges, str) else ranges)


def load_budget(budget: Budget | BudgetConfig | float | None) -> Budget:
    """Return a budget, checked: from nothing, a global sparsity, or a budget.

    Raises:
        MmpError: if a sparsity or a size in it is out of range, or both are set.
    """
    return build_budget(read_budget(BudgetConfig(**vars(budget)) if isinstance(budget, Budget) else budget))


def load_strategies() -> list[Strategy]:
    """Return all strategies of ``conf/strategy``."""
    return [load_strategy(name) for name in choices_of("strategy")]


def load_strategy(name: str) -> Strategy:
    """Return a strategy of ``conf/strategy`` by name."""
    return build_strategy(read_strategy(choose("strategy", name)))


def _check_budget_names(budget: Budget, strategies: Iterable[Strategy]) -> None:
    if not budget.strategies:
        return
    known = {*choices_of("strategy"), *(strategy.name for strategy in strategies)}
    for name in budget.strategies:
        if name not in known:
            raise MmpError(f"budget.strategies.{name}: no such strategy; {nearest(name, known)}")


def plan_of(config: PlanConfig) -> Plan:
    """Return the plan of a configuration; for observed ranges, of a dense model that is trained if it must be."""
    from mmp.models.timm_models import build_skeleton

    configured = build_strategy(config.strategy)  # with what the command line says of it
    others = [load_strategy(name) for name in choices_of("strategy") if name != configured.name]
    strategies = [configured, *others]
    name = config.model.title
    if config.ranges.source == "rules":
        model = build_skeleton(config.model)
        return make_plan(model, config.ranges, strategies, config.budget, name=name, pattern=config.pattern)

    from mmp.data.module import ImageData
    from mmp.models.timm_models import fill_input
    from mmp.runs.calibration import Calibration
    from mmp.training.dense import dense_model
    from mmp.training.evaluation import device_of

    fill_input(config)
    data = ImageData(config.data, config.seed)  # type: ignore[arg-type]
    model, _ = dense_model(config, data)
    calibration = Calibration.of(config, model, prunable_layers(model), data, device_of(config))
    observed = calibration.observe(config.ranges)
    return make_plan(model, config.ranges, strategies, config.budget, observed, name, config.pattern)


def show(cfg: DictConfig) -> None:
    """Print the plan of a configuration, or the survey of all models whose names match a pattern."""
    from mmp.config.command import quiet
    from mmp.pruning.plan_views import draw_plan, render

    config = validate(cfg, PlanConfig)
    quiet()
    if any(sign in config.model.name for sign in "*?["):
        if config.picture:
            raise MmpError(f"picture={config.picture}: a picture shows one model, but model.name is a pattern")
        from mmp.models.survey import print_survey

        print_survey(config, load_strategies())
        return
    plan = plan_of(config)
    render(plan, config.format)
    if config.picture:
        draw_plan(plan, Path(config.picture))


def main() -> None:
    """Run the command line."""
    import hydra

    from mmp.config.command import command
    from mmp.config.registration import register

    register()
    command(hydra.main(version_base="1.3", config_path=str(FOLDER), config_name="plan")(show))


if __name__ == "__main__":
    main()
