"""Objects from configurations: strategies, budgets, range tables, and any class that a ``_target_`` names.

No other module reads ``_target_``.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from mmp.config.schema import BudgetConfig, ConstraintsConfig, RangesConfig, SelectorConfig, StrategyConfig
from mmp.config.source_code import module_of, source_digest
from mmp.errors import MmpError, listed, nearest, one_line
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
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    return call(resolve(address, key), arguments, address, key)


def resolve(address: str, key: str) -> Callable[..., Any]:
    """Return the class or function of an address.

    Args:
        address: The address, such as ``my_signals.Mine``.
        key: The key of the configuration that has it as its ``_target_``, for error messages.

    Raises:
        MmpError: if it cannot be imported, or is neither a class nor a function.
    """
    source_digest(address)  # before the import, so that the hash of the source is a hash of the code that runs
    setting = f"{key}._target_={address}"
    try:
        target = pkgutil.resolve_name(address)
    except (ImportError, AttributeError, ValueError) as error:
        raise MmpError(
            f"{setting}: cannot be imported ({one_line(error)}); {_way_to_import(address, error)}"
        ) from error
    except (Exception, SystemExit) as error:  # the module of a user can raise any exception while it is imported
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise MmpError(f"{setting}: its module fails while it is imported ({reason}); correct the module") from error
    if not callable(target):
        raise MmpError(f"{setting}: is a {type(target).__name__}, neither a class nor a function; write module.Class")
    return cast(Callable[..., Any], target)


def _way_to_import(address: str, error: Exception) -> str:
    """Return the end of an error message: how an address that cannot be imported becomes one that can."""
    module = module_of(address)
    if isinstance(error, ModuleNotFoundError) and module and not f"{address}.".startswith(f"{error.name}."):
        return f"{module} needs this module; install it, or correct the import"
    loaded = sys.modules.get(module or "")
    if isinstance(error, AttributeError) and loaded is not None:
        names = [name for name, value in vars(loaded).items() if callable(value) and not name.startswith("_")]
        return nearest(address.replace(":", ".").removeprefix(f"{module}."), names)
    return f"correct the address of the class, or put its module into the working folder {Path.cwd()}"


def call(target: Callable[..., Any], arguments: Mapping[str, Any], address: str, key: str) -> Any:
    """Call a class or function with arguments of a configuration.

    Args:
        target: The class or function.
        arguments: Its arguments by name.
        address: Its address, for error messages.
        key: The key of the configuration that has the arguments, for error messages.

    Raises:
        MmpError: if an argument is unknown or missing, or if the call fails.
    """
    accepted = _parameters(target)
    if accepted is not None and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        for name in arguments:
            if name not in accepted:
                raise MmpError(f"{key}.{name}: {address} has no such argument; {nearest(name, accepted)}")
    try:
        return target(**arguments)
    except MmpError:
        raise
    except (Exception, SystemExit) as error:  # a class of a user or of another package can raise any exception
        missing = [name for name in _required(accepted or {}) if name not in arguments]
        if missing and isinstance(error, TypeError):
            settings = " ".join(f"+{key}.{name}=..." for name in missing)
            raise MmpError(f"{key}: {address} needs the argument {listed(missing)}; set {settings}") from error
        if not arguments:
            raise MmpError(f"{key}: {address} fails without arguments ({one_line(error)}); correct it") from error
        raise MmpError(
            f"{key}: {address} does not accept {arguments} ({one_line(error)}); correct the arguments"
        ) from error


def _parameters(target: Any) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of a class or function by name; None if it does not state them, as ``dict`` does not."""
    try:
        return inspect.signature(target).parameters
    except (ValueError, TypeError):
        return None


def _required(accepted: Mapping[str, inspect.Parameter]) -> Iterator[str]:
    """Yield the names of parameters that have no default."""
    for name, parameter in accepted.items():
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            yield name


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
