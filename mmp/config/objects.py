"""From configuration to objects: the only place where ``_target_`` is read."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from mmp.config.schema import BudgetConfig, RangesConfig, SelectorConfig, StrategyConfig
from mmp.errors import MmpError, nearest
from mmp.pruning.budgets import Budget
from mmp.pruning.ranges import Constraints, Range, RangeTable, Rule, RuleTable, Selector
from mmp.pruning.strategies import Strategy


def instantiate(node: Mapping[str, Any], key: str) -> Any:
    """Create the object that ``node['_target_']`` names, with the other entries as arguments.

    Args:
        node: Configuration of the object.
        key: Where it stands, for messages.

    Raises:
        MmpError: if there is no such class, it does not take an argument, or it refuses a value.
    """
    if "_target_" not in node:
        raise MmpError(f"{key} has no _target_; it must name a class, or be null")
    try:
        target = pkgutil.resolve_name(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        raise MmpError(f"{key}._target_={node['_target_']}: there is no such class ({error})") from error
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    accepted = inspect.signature(target).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        for name in arguments:
            if name not in accepted:
                raise MmpError(f"{key}.{name}: {node['_target_']} takes no such key; {nearest(name, accepted)}")
    try:
        return target(**arguments)
    except (TypeError, ValueError) as error:
        raise MmpError(f"{key}: {node['_target_']} refuses {arguments} ({error})") from error


def build_strategy(cfg: StrategyConfig) -> Strategy:
    """Return the strategy of a configuration."""
    return Strategy(**vars(cfg))


def build_selector(cfg: SelectorConfig) -> Selector:
    """Return the selector of a configuration."""

    def pair(value: Sequence[Any] | None, what: str) -> Any:
        if value is not None and len(value) != 2:
            raise MmpError(f"ranges: {what}={list(value)} must be an interval [a, b]")
        return None if value is None else tuple(value)

    return Selector(
        role=tuple(cfg.role),
        stage=tuple(cfg.stage),
        depth=pair(cfg.depth, "depth"),
        position=pair(cfg.position, "position"),
        rank=pair(cfg.rank, "rank"),
        name=cfg.name,
        min_size=cfg.min_size,
    )


def build_budget(cfg: BudgetConfig) -> Budget:
    """Return the budget of a configuration."""
    return Budget(**vars(cfg))


def build_range_table(cfg: RangesConfig) -> RangeTable:
    """Return the range table of a configuration: its rules, its constraints and its groups of layers."""
    return RangeTable(
        name=cfg.name,
        rules=build_rule_table(cfg),
        observed=cfg.source == "observed",
        constraints=build_constraints(cfg),
        groups=build_groups(cfg),
    )


def build_rule_table(cfg: RangesConfig) -> RuleTable:
    """Return the rule table of a configuration."""
    rules = []
    for number, rule in enumerate(cfg.rules, start=1):
        try:
            rules.append(Rule(build_selector(rule), Range(*rule.range)))
        except MmpError as error:
            raise MmpError(f"ranges={cfg.name}: rule {number}: {error}") from error
    return RuleTable(
        name=cfg.name,
        rules=tuple(rules),
        default=None if cfg.default is None else Range(*cfg.default),
        strict=cfg.strict,
    )


def build_constraints(cfg: RangesConfig) -> Constraints:
    """Return the constraints of a configuration."""
    held = cfg.constraints
    return Constraints(
        small_below=held.small_below,
        small=Range(*held.small),
        patch_embed=None if held.patch_embed is None else Range(*held.patch_embed),
        ceiling=held.ceiling,
    )


def build_groups(cfg: RangesConfig) -> dict[str, tuple[Selector, ...]]:
    """Return the selectors of each group of a configuration."""
    return {name: tuple(build_selector(s) for s in selectors) for name, selectors in cfg.groups.items()}
