"""Objects from configurations: strategies, budgets, range tables, and any class that a ``_target_`` names.

No other module reads ``_target_``.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmp.config.schema import BudgetConfig, ConstraintsConfig, RangesConfig, SelectorConfig, StrategyConfig
from mmp.config.source_code import source_digest
from mmp.errors import MmpError, nearest, one_line
from mmp.pruning.budgets import Budget
from mmp.pruning.ranges import Constraints, Range, RangeTable, Rule, RuleTable, Selector
from mmp.pruning.strategies import Strategy


def instantiate(node: Mapping[str, Any], key: str) -> Any:
    """Create the object that a configuration describes: ``_target_`` is its class, the other keys are arguments.

    Args:
        node: The configuration.
        key: The key of this configuration, for error messages.

    Raises:
        MmpError: if the class cannot be imported, or does not accept an argument or its value.
    """
    if "_target_" not in node:
        raise MmpError(f"{key}: has no _target_; set {key}._target_ to a class, or {key}=null")
    address = str(node["_target_"])
    source_digest(address)  # before the import, so that the hash of the source is a hash of the code that runs
    try:
        target = pkgutil.resolve_name(address)
    except (ImportError, AttributeError, ValueError) as error:
        raise MmpError(
            f"{key}._target_={address}: cannot be imported ({error}); correct the address of the class, or put its "
            "module into the working folder"
        ) from error
    except Exception as error:  # the module of a user can raise any exception while it is imported
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise MmpError(
            f"{key}._target_={address}: its module fails while it is imported ({reason}); correct the module"
        ) from error
    if not callable(target):
        raise MmpError(f"{key}._target_={address}: is no class; write module.Class")
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    accepted = _parameters(target)
    if accepted is not None and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        for name in arguments:
            if name not in accepted:
                raise MmpError(f"{key}.{name}: {address} has no such argument; {nearest(name, accepted)}")
    try:
        return target(**arguments)
    except MmpError:
        raise
    except Exception as error:  # a class of a user or of another package can raise any exception
        raise MmpError(
            f"{key}: {address} does not accept {arguments} ({one_line(error)}); correct the arguments"
        ) from error


def _parameters(target: Any) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of a class or function by name; None if it does not state them, as ``dict`` does not."""
    try:
        return inspect.signature(target).parameters
    except ValueError:
        return None


def build_strategy(cfg: StrategyConfig) -> Strategy:
    """Return the strategy that a configuration describes."""
    return Strategy(**vars(cfg))


def build_budget(cfg: BudgetConfig) -> Budget:
    """Return the budget that a configuration describes."""
    return Budget(**vars(cfg))


def build_range_table(cfg: RangesConfig) -> RangeTable:
    """Return the range table that a configuration describes: its rules, its constraints and its groups of layers."""
    return RangeTable(
        name=cfg.name,
        rules=_build_rule_table(cfg),
        observed=cfg.source == "observed",
        constraints=_build_constraints(cfg.constraints),
        groups=_build_groups(cfg),
    )


def _build_rule_table(cfg: RangesConfig) -> RuleTable:
    rules = []
    for number, rule in enumerate(cfg.rules, start=1):
        with _named(f"ranges={cfg.name}: rule {number}"):
            rules.append(Rule(_build_selector(rule), Range(*rule.range)))
    return RuleTable(
        name=cfg.name,
        rules=tuple(rules),
        default=None if cfg.default is None else Range(*cfg.default),
        strict=cfg.strict,
    )


def _build_constraints(cfg: ConstraintsConfig) -> Constraints:
    return Constraints(
        small_below=cfg.small_below,
        small=Range(*cfg.small),
        patch_embed=None if cfg.patch_embed is None else Range(*cfg.patch_embed),
        ceiling=cfg.ceiling,
    )


def _build_groups(cfg: RangesConfig) -> dict[str, tuple[Selector, ...]]:
    groups = {}
    for name, selectors in cfg.groups.items():
        with _named(f"ranges={cfg.name}: group {name}"):
            groups[name] = tuple(_build_selector(selector) for selector in selectors)
    return groups


def _build_selector(cfg: SelectorConfig) -> Selector:
    return Selector(
        role=tuple(cfg.role),
        stage=tuple(cfg.stage),
        depth=_interval("depth", cfg.depth),
        position=_interval("position", cfg.position),
        rank=_interval("rank", cfg.rank),
        name=cfg.name,
        min_size=cfg.min_size,
    )


def _interval(key: str, values: Sequence[Any] | None) -> Any:
    if values is not None and len(values) != 2:
        raise MmpError(f"{key}={list(values)}: must be an interval [a, b]")
    return None if values is None else tuple(values)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Put a place in front of the message of an error in a ``with`` block."""
    try:
        yield
    except MmpError as error:
        raise MmpError(f"{place}: {error}") from error
