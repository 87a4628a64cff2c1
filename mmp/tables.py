"""From the configuration of a range table or a strategy to its objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmp.config import RangesConfig, SelectorConfig, StrategyConfig
from mmp.errors import MmpError
from mmp.ranges import Constraints, Range, Rule, RuleTable, Selector
from mmp.strategies import Strategy


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
