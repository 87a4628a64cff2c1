"""Plans by name: :func:`make_plan` for any ``nn.Module``, and the command ``python -m mmp.plan``.

Range tables and strategies are named as in ``conf/``. A plan has the layers of a model, their ranges, and their
sparsities under every strategy; it needs no training. Pruning uses the same functions, so it has the sparsities of the
plan. The plan itself, without names from ``conf/``, is :func:`mmp.pruning.plan.plan_model`.
"""

from __future__ import annotations

from mmp.openmp import bound_spin

if __name__ == "__main__":
    bound_spin()  # before torch is imported

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mmp.config.choices import FOLDER, choices_of, read_choice
from mmp.config.objects import build_budget, build_range_table, build_strategy
from mmp.config.schema import BudgetConfig, PlanConfig, RangesConfig
from mmp.config.validate import read_budget, read_ranges, read_strategy, validate
from mmp.errors import MmpError, nearest
from mmp.pruning.budgets import Budget
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.layers.prunable import find_layers
from mmp.pruning.patterns import UNSTRUCTURED, Channels, Pattern, no_channels, parse
from mmp.pruning.plan import Plan, plan_model
from mmp.pruning.ranges import RangeTable
from mmp.pruning.strategies import Strategy

if TYPE_CHECKING:
    from omegaconf import DictConfig


def make_plan(
    model: nn.Module,
    ranges: RangeTable | RangesConfig | str | None = None,
    strategies: Iterable[Strategy] | None = None,
    budget: Budget | BudgetConfig | float | None = None,
    observations: Iterable[Mapping[str, float]] | None = None,
    name: str | None = None,
    pattern: Pattern | Channels | str = UNSTRUCTURED,
    image: Tensor | None = None,
    structure: WholeChannels | None = None,
) -> Plan:
    """Return the plan of a model.

    Names are those of the built-in ``conf/``: in place of a file in your own ``conf/``, pass an object, such as a
    ``Strategy``.

    Args:
        model: Any module, on any device, including ``meta``.
        ranges: A range table, or the name of one in ``conf/ranges``; None for ``generic``, or for ``channels`` with
            that pattern.
        strategies: The strategies; None for all strategies in ``conf/strategy``.
        budget: The budget that every strategy is shifted to; a number is a global sparsity in [0, 1].
        observations: Layer sparsities under criteria at global sparsities, for observed ranges.
        name: The model's name in the plan; None for the name of its class.
        pattern: The pattern of the masks, such as ``2:4`` or ``channels``.
        image: With ``channels``, one image of the model's real size, (1, C, H, W), to find the channels that go
            together. The model must not be on ``meta`` then.
        structure: The channels of the model, if they have been found already, with the same pattern.

    Raises:
        MmpError: if the model has no prunable layer, the range table does not fit it, the budget cannot be reached, the
            structure is of another model or pattern, or the table, a strategy of the budget or the pattern does not
            exist.
    """
    checked, parsed = load_budget(budget), parse(str(pattern))
    chosen = load_strategies() if strategies is None else list(strategies)
    _require_known_strategies(checked, chosen)
    if structure is not None and structure.pattern != parsed:
        raise MmpError(f"pattern={parsed}: the structure has pattern={structure.pattern}; pass the same pattern")
    if isinstance(parsed, Channels):
        table = load_ranges("channels" if ranges is None else ranges)
        if table.observed or observations is not None:
            raise MmpError(no_channels(f"ranges={table.name} with observations", parsed))
        if structure is None:
            if image is None:
                raise MmpError(f"pattern={parsed}: the channels that go together are found with an image; pass image")
            structure = WholeChannels.of(model, image, parsed, dimensions=table.dimensions)
        return plan_model(model, table, chosen, checked, observations, name, structure=structure)
    table = load_ranges("generic" if ranges is None else ranges)
    plan = plan_model(model, table, chosen, checked, observations, name, parsed)
    plan.coverage.warn(plan.model)
    return plan


def load_ranges(ranges: RangeTable | RangesConfig | str) -> RangeTable:
    """Return a range table.

    Args:
        ranges: A table, its configuration, or the name of one in ``conf/ranges``.

    Raises:
        MmpError: if there is no such table, or it has an invalid value.
    """
    if isinstance(ranges, RangeTable):
        return ranges
    return build_range_table(read_choice("ranges", ranges, read_ranges) if isinstance(ranges, str) else ranges)


def load_budget(budget: Budget | BudgetConfig | float | None) -> Budget:
    """Return a budget with its values checked.

    Args:
        budget: A budget, its configuration, a global sparsity in [0, 1], or None for no budget.

    Raises:
        MmpError: if a sparsity or a size is out of range, or both are set.
    """
    return build_budget(read_budget(BudgetConfig(**vars(budget)) if isinstance(budget, Budget) else budget))


def load_strategies() -> list[Strategy]:
    """Return all strategies in ``conf/strategy``."""
    return [load_strategy(name) for name in choices_of("strategy")]


def load_strategy(name: str) -> Strategy:
    """Return a strategy in ``conf/strategy`` by name.

    Raises:
        MmpError: if there is no such strategy.
    """
    return build_strategy(read_choice("strategy", name, read_strategy))


def _require_known_strategies(budget: Budget, strategies: Iterable[Strategy]) -> None:
    """Require that every strategy with a budget of its own exists."""
    if not budget.strategies:
        return
    known = {*choices_of("strategy"), *(strategy.name for strategy in strategies)}
    for name in budget.strategies:
        if name not in known:
            raise MmpError(f"budget.strategies.{name}: no such strategy; {nearest(name, known)}")


def plan_of(config: PlanConfig) -> Plan:
    """Return the plan of a configuration. Observed ranges need a dense model, which is trained if it is not cached."""
    from mmp.models.networks import build_bare, build_skeleton

    configured = build_strategy(config.strategy)  # with the command line's changes
    others = [load_strategy(name) for name in choices_of("strategy") if name != configured.name]
    observations, structure, pattern = None, None, parse(config.pattern)
    if isinstance(pattern, Channels):
        from mmp.runs.structure import structure_of

        if config.ranges.source != "rules":
            raise MmpError(no_channels(f"ranges={config.ranges.name}", pattern))
        model = build_bare(config.model)
        found = structure_of(config, model, pattern)
        assert isinstance(found, WholeChannels)
        structure = found
    elif config.ranges.source == "rules":
        model = build_skeleton(config.model)
    else:
        model, observations = _observed(config)
    return make_plan(
        model,
        config.ranges,
        [configured, *others],
        config.budget,
        observations,
        name=config.model.title,
        pattern=pattern,
        structure=structure,
    )


def _observed(config: PlanConfig) -> tuple[nn.Module, list[dict[str, float]]]:
    """Return the dense model, and its layer sparsities under the criteria that observe its ranges."""
    from mmp.data.module import ImageData
    from mmp.models.networks import fill_input
    from mmp.runs.calibration import Calibration
    from mmp.runs.threads import own_cores
    from mmp.training.dense import dense_model
    from mmp.training.evaluation import device_of

    fill_input(config)
    assert config.data is not None  # validate() requires data for observed ranges
    data = ImageData(config.data, config.seed, Path(config.paths.cache))
    with own_cores(config):
        model, _ = dense_model(config, data)
        calibration = Calibration.of(config, model, find_layers(model), data, device_of(config))
        return model, calibration.observe(config.ranges)


def show(cfg: DictConfig) -> None:
    """Print the plan of a configuration; if its model name is a pattern, print a survey of all models that match."""
    from mmp.config.command import quiet
    from mmp.pruning.plan_views import draw_plan, render

    config = validate(cfg, PlanConfig)
    quiet()
    if any(sign in config.model.name for sign in "*?["):
        if isinstance(parse(config.pattern), Channels):
            raise MmpError(
                f"pattern={config.pattern}: a survey shows single weights, but model.name={config.model.name} is a "
                "pattern; set a single model.name, or pattern=none"
            )
        if config.picture:
            raise MmpError(f"picture={config.picture}: a picture needs a single model, but model.name is a pattern")
        from mmp.models.survey import print_survey

        print_survey(config, load_strategies())
        return
    plan = plan_of(config)
    render(plan, config.format)
    if config.picture:
        draw_plan(plan, Path(config.picture))


def main() -> None:
    """Run the command."""
    import hydra

    from mmp.config.command import command
    from mmp.config.registration import register

    register()
    command(hydra.main(version_base="1.3", config_path=str(FOLDER), config_name="plan")(show))


if __name__ == "__main__":
    main()
