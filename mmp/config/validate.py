"""Validation: from the configuration that Hydra composed to plain dataclasses, every value checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmp.config.contents import check_containers, numbers_in
from mmp.config.explain import explain_key
from mmp.config.home import with_home
from mmp.config.schema import (
    JOINT,
    NO_CRITERION,
    NO_NETWORK,
    STRATEGY,
    AllocationConfig,
    BudgetConfig,
    ConstraintsConfig,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    PlanConfig,
    PruneConfig,
    RangesConfig,
    RecipeConfig,
    ReconstructConfig,
    SelectorConfig,
    StrategyConfig,
    TrainConfig,
    TrainerConfig,
)
from mmp.errors import MmpError, nearest
from mmp.pruning.budgets import NEEDS_CHANNELS
from mmp.pruning.patterns import Channels, parse

RECONSTRUCTIONS = ("none", "least_squares", JOINT)
TUNING_PRECISIONS = ("32-true", "bf16-mixed")
FORMATS = ("table", "json", "md", "csv")
SOURCES = ("rules", "observed")
MAX_SEED = 2**32 - 1  # of NumPy's random numbers

Config = TypeVar("Config", bound=TrainConfig)
Section = TypeVar("Section")


@overload
def validate(cfg: DictConfig) -> TrainConfig: ...
@overload
def validate(cfg: DictConfig, schema: type[Config]) -> Config: ...
def validate(cfg: DictConfig, schema: type[TrainConfig] = TrainConfig) -> TrainConfig:
    """Return a configuration as plain dataclasses, every value checked and every interpolation resolved.

    Args:
        cfg: The configuration that Hydra composed.
        schema: The class of the result: ``TrainConfig``, ``PruneConfig`` or ``PlanConfig``.

    Raises:
        MmpError: if a value is wrong; the message names the key, the value and what would be right.
        OmegaConfBaseException: if a value is missing, or an interpolation cannot be resolved.
    """
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, schema):
        needed = schema.__name__.removesuffix("Config").lower()
        raise MmpError(
            f"--config-name: this command needs a configuration of the schema {needed}_schema; leave the option out, "
            f"or put {needed}_schema first into the file's defaults list"
        )
    check_containers(config)
    with_home(config)
    for key, number in numbers_in(config):
        _check(key, number, math.isfinite, "a finite number")
    _check("seed", config.seed, lambda v: 0 <= v <= MAX_SEED, f"a whole number from 0 to {MAX_SEED}")
    _check_nodes(config)
    _check_model(config.model)
    if config.data is not None:
        _check_data(config.data)
        _join(config.model, config.data)
    _check_trainer(config.trainer)
    _check_recipe("dense", config.dense, least_epochs=1)
    if isinstance(config, PruneConfig):
        _check_prune(config)
    if isinstance(config, PlanConfig):
        _check_plan(config)
    return config


def read_ranges(node: DictConfig) -> RangesConfig:
    """Return the configuration of one range table, checked as :func:`validate` does.

    Raises:
        MmpError: if it has an unknown key or a wrong value.
    """
    ranges = _typed("ranges", node, RangesConfig)
    _check_ranges(ranges)
    return ranges


def read_reconstruct(node: DictConfig) -> ReconstructConfig:
    """Return the configuration of re-solving, checked as :func:`validate` does.

    Raises:
        MmpError: if it has an unknown key or a wrong value.
    """
    reconstruct = _typed("reconstruct", node, ReconstructConfig)
    _check_reconstruct(reconstruct)
    return reconstruct


def read_strategy(node: DictConfig) -> StrategyConfig:
    """Return the configuration of one strategy. Its values are checked where the strategy is built.

    Raises:
        MmpError: if it has an unknown key, or a value of a wrong type.
    """
    return _typed("strategy", node, StrategyConfig)


def read_budget(node: Any) -> BudgetConfig:
    """Return a budget, checked.

    Args:
        node: None, a global sparsity, a mapping of the keys of ``BudgetConfig``, or a ``BudgetConfig``.

    Raises:
        MmpError: if it has an unknown key or a wrong value, or sets both a sparsity and a size.
    """
    if node is None:
        return BudgetConfig()
    if _is_number(node):
        node = {"sparsity": node}
    if isinstance(node, BudgetConfig):
        node = vars(node)
    if not isinstance(node, dict):
        raise MmpError(f"budget={node!r}: must be a number, a global sparsity such as 0.9, or budget.megabytes=...")
    for key in node:
        if key not in BudgetConfig.__dataclass_fields__:
            raise MmpError(f"budget.{key}: no such key; {nearest(str(key), BudgetConfig.__dataclass_fields__)}")
    budget = BudgetConfig(**node)
    expected = "a mapping from strategies to global sparsities, such as {p70: 0.9}"
    _check("budget.strategies", budget.strategies, lambda v: isinstance(v, dict), expected)
    _check_budget(budget)
    return budget


def _typed(group: str, node: DictConfig, schema: type[Section]) -> Section:
    """Return the content of a file as a dataclass.

    Raises:
        MmpError: if it has no name, an unknown key, or a value of a wrong type; the message names the file.
    """
    name = node.get("name")
    if name is None:
        raise MmpError(f"{group}: a file with the keys {', '.join(map(str, node))} has no name; add name: ... to it")
    try:
        section: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), node))
    except OmegaConfBaseException as error:
        raise MmpError(f"{group}={name}: {explain_key(error)}") from error
    return section


def _check(key: str, value: Any, holds: Callable[[Any], bool], expected: str) -> None:
    if not holds(value):
        raise MmpError(f"{key}={value}: must be {expected}")


def _check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    if value not in (known := list(choices)):
        raise MmpError(f"{key}={value}: no such choice; {nearest(value, known)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- the sections of every configuration ---


def _check_nodes(config: TrainConfig) -> None:
    """Check that every logger and every callback is null or the keys of a class."""
    for group in ("logger", "callbacks"):
        for name, node in getattr(config, group).items():
            expected = "null, or a class and its arguments, as in {_target_: module.Class}"
            _check(f"{group}.{name}", node, lambda v: v is None or isinstance(v, dict), expected)


def _check_model(model: ModelConfig) -> None:
    if not model.name and not model._target_:
        raise MmpError(NO_NETWORK)
    if model.name and model._target_:
        raise MmpError(
            f"model._target_={model._target_}: is a network of your own, but model.name={model.name} is one of timm; "
            "set one of the two: model=own model._target_=..., or model=timm model.name=..."
        )
    for key in ("num_classes", "in_chans", "image_size"):
        if getattr(model, key) is not None:
            _check(f"model.{key}", getattr(model, key), lambda v: v >= 1, "at least 1")
    _check("model.std", model.std, lambda v: v is None or min(v) > 0, "positive")
    if model._target_ and model.pretrained:
        raise MmpError(
            f"model.pretrained=true: timm's weights are for timm's models, not for {model._target_}; set "
            "model.pretrained_file or model.checkpoint to a file of weights"
        )
    if "_target_" in model.kwargs:
        raise MmpError(f"model.kwargs._target_={model.kwargs['_target_']}: set model._target_ instead")
    has_file = bool(model.checkpoint or model.pretrained_file)
    expected = "null, since neither model.checkpoint nor model.pretrained_file is set"
    _check("model.weights_key", model.weights_key, lambda v: v is None or has_file, expected)


def _check_data(data: DataConfig) -> None:
    for key in ("validation", "calibration", "test"):
        _check(f"data.{key}", getattr(data, key), lambda v: 0 < v < 1, "a fraction between 0 and 1")
    share = data.validation + data.calibration
    _check("data.validation + data.calibration", share, lambda v: v < 1, "less than 1, to leave images for training")
    for key in ("batch_size", "eval_batch_size", "classes", "channels", "image_size"):
        if getattr(data, key) is not None:
            _check(f"data.{key}", getattr(data, key), lambda v: v >= 1, "at least 1")
    _check("data.classes", data.classes, lambda v: v >= 2, "at least 2, since one class leaves nothing to learn")
    _check("data.workers", data.workers, lambda v: v >= 0, "at least 0")
    expected = "null, or arguments of timm's create_transform such as {hflip: 0.5}"
    _check("data.augment", data.augment, lambda v: v is None or isinstance(v, dict), expected)
    for key in ("mean", "std"):
        expected = f"a list of one number per channel (data.channels={data.channels})"
        if getattr(data, key) is not None:
            _check(f"data.{key}", getattr(data, key), lambda v: len(v) == data.channels, expected)
    if data.std is not None:
        _check("data.std", data.std, lambda v: min(v) > 0, "positive")
    if data.crop_pct is not None:
        _check("data.crop_pct", data.crop_pct, lambda v: 0 < v <= 1, "a fraction of the image in (0, 1]")


def _join(model: ModelConfig, data: DataConfig) -> None:
    """Give a model without a number of classes the number in the data; raise if model and data disagree."""
    if model.num_classes is None:
        model.num_classes = data.classes
    for key, own, other in (("num_classes", "classes", data.classes), ("in_chans", "channels", data.channels)):
        if getattr(model, key) != other:
            raise MmpError(
                f"model.{key}={getattr(model, key)}, but data={data.name} has {other} {own}; set model.{key}={other}"
            )
    for key in ("mean", "std"):
        expected = f"a list of one number per channel (data.channels={data.channels})"
        _check(f"model.{key}", getattr(model, key), lambda v: v is None or len(v) == data.channels, expected)


def _check_trainer(trainer: TrainerConfig) -> None:
    _check("trainer.devices", trainer.devices, lambda v: v >= 1, "at least 1")
    _check("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, lambda v: v >= 1, "at least 1")

    clip = trainer.gradient_clip_val
    _check("trainer.gradient_clip_val", clip, lambda v: v is None or v >= 0, "null, or a norm of at least 0")
    _check("trainer.log_every_n_steps", trainer.log_every_n_steps, lambda v: v >= 1, "at least 1")

    def is_limit(value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        return value is None or whole or (isinstance(value, float) and 0 < value <= 1)

    for key in ("limit_train_batches", "limit_val_batches"):
        _check(
            f"trainer.{key}", getattr(trainer, key), is_limit, "a number of batches, or a fraction of them in (0, 1]"
        )


def _check_recipe(key: str, recipe: RecipeConfig, least_epochs: int) -> None:
    _check(f"{key}.epochs", recipe.epochs, lambda v: v >= least_epochs, f"at least {least_epochs}")
    _check(f"{key}.learning_rate", recipe.learning_rate, lambda v: v > 0, "positive")
    _check(f"{key}.weight_decay", recipe.weight_decay, lambda v: v >= 0, "at least 0")
    _check(f"{key}.warmup_epochs", recipe.warmup_epochs, lambda v: v >= 0, "at least 0")
    if not recipe.by_step:
        expected = f"a whole number, unless {key}.by_step=true lets the rate change within an epoch"
        _check(f"{key}.warmup_epochs", recipe.warmup_epochs, lambda v: float(v).is_integer(), expected)
    _check(f"{key}.layer_decay", recipe.layer_decay, lambda v: v is None or 0 < v <= 1, "null, or a factor in (0, 1]")
    rates = recipe.min_learning_rate, recipe.learning_rate
    expected = f"at least 0 and at most {key}.learning_rate={recipe.learning_rate}"
    _check(f"{key}.min_learning_rate", rates[0], lambda v: 0 <= v <= rates[1], expected)
    _check(f"{key}.label_smoothing", recipe.label_smoothing, lambda v: 0 <= v < 1, "in [0, 1)")


# --- the sections of mmp-prune ---


def _check_prune(config: PruneConfig) -> None:
    """Check the keys of ``mmp-prune``. The budget becomes a ``BudgetConfig``, and the pattern gets its own spelling."""
    _check_ranges(config.ranges)
    config.budget = read_budget(config.budget)
    pattern = parse(config.pattern)
    config.pattern = str(pattern)
    if config.budget.macs is not None and not isinstance(pattern, Channels):
        raise MmpError(f"budget.macs={config.budget.macs}: {NEEDS_CHANNELS}")
    _check_recipe("finetune", config.finetune, least_epochs=0)
    _check_finetune(config.finetune)
    _check_callbacks(config)
    _check_reconstruct(config.reconstruct)
    _check_criterion(config)
    _check_allocation(config.allocation)
    _check_strategy(config.strategy)
    if config.match:
        config.budget = BudgetConfig()  # an experiment may set a budget for its strategies; a match replaces it


def _check_ranges(ranges: RangesConfig) -> None:
    """Check a range table. Its groups become lists of ``SelectorConfig``."""
    ranges.groups = {name: _selectors(name, entries) for name, entries in ranges.groups.items()}
    _check_choice("ranges.source", ranges.source, SOURCES)
    for target in ranges.targets:
        _check("ranges.targets", target, lambda v: 0 <= v < 1, "global sparsities in [0, 1)")
    _check("ranges.grasp_temperature", ranges.grasp_temperature, lambda v: v > 0, "positive")
    _check_constraints(ranges.constraints)
    pairs = {"ranges.default": ranges.default}
    pairs |= {f"ranges.rules[{i}].range": rule.range for i, rule in enumerate(ranges.rules)}
    for key, pair in pairs.items():
        _check_range(key, pair)


def _check_constraints(constraints: ConstraintsConfig) -> None:
    ceiling = constraints.ceiling
    _check("ranges.constraints.ceiling", ceiling, lambda v: 0 < v < 1, "between 0 and 1, so that no layer is emptied")
    _check_range("ranges.constraints.small", constraints.small)
    _check_range("ranges.constraints.patch_embed", constraints.patch_embed)


def _check_range(key: str, pair: list[float] | None) -> None:
    if pair is not None:
        expected = "two sparsities [lo, hi] with 0 <= lo <= hi <= 1"
        _check(key, pair, lambda v: len(v) == 2 and 0 <= v[0] <= v[1] <= 1, expected)


def _selectors(group: str, entries: Any) -> list[SelectorConfig]:
    """Return the selectors of a group. OmegaConf has no type for a mapping from names to lists of dataclasses."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise MmpError(f"ranges.groups.{group}={entries}: must be a list of selectors such as [{{role: [conv]}}]")
    selectors: list[Any] = []
    for entry in entries:
        try:
            merged = OmegaConf.merge(OmegaConf.structured(SelectorConfig), entry)
        except OmegaConfBaseException as error:
            raise MmpError(f"ranges.groups.{group}: {explain_key(error)}") from error
        selectors.append(OmegaConf.to_object(merged))
    return selectors


def _check_budget(budget: BudgetConfig) -> None:
    units = {f"budget.{key}": getattr(budget, key) for key in ("megabytes", "macs") if getattr(budget, key) is not None}
    others = [f"budget.sparsity={budget.sparsity}"] if budget.sparsity is not None else []
    others += [f"budget.strategies.{name}={value}" for name, value in budget.strategies.items()]
    if units and len(units) + len(others) > 1:
        (key, value), *more = units.items()
        others = [f"{other}={number}" for other, number in more] + others
        raise MmpError(
            f"{key}={value} is set beside {', '.join(others)}, but a strategy can meet only one; clear the others with "
            f"budget.sparsity=null '~budget.strategies', or set {key}=null"
        )
    for key, value in {"": budget.sparsity, **{f".strategies.{n}": v for n, v in budget.strategies.items()}}.items():
        if value is not None:
            _check(f"budget{key}", value, lambda v: _is_number(v) and 0 <= v < 1, "a global sparsity in [0, 1)")
    if budget.megabytes is not None:
        expected = "a positive number, in units of 10^6 bytes"
        _check("budget.megabytes", budget.megabytes, lambda v: _is_number(v) and v > 0, expected)
    if budget.macs is not None:
        expected = "the share of the dense model's multiply-adds that may be left, in (0, 1]"
        _check("budget.macs", budget.macs, lambda v: _is_number(v) and 0 < v <= 1, expected)


def _check_finetune(recipe: FinetuneConfig) -> None:
    if recipe.gentle is not None:
        _check("finetune.gentle", recipe.gentle, lambda v: 0 < v < 1, "a share of the learning rate in (0, 1)")
        _check("finetune.epochs", recipe.epochs, lambda v: v >= 1, "at least 1 if finetune.gentle is set")
    _check("finetune.distillation", recipe.distillation, lambda v: 0 <= v <= 1, "a share of the loss in [0, 1]")
    _check("finetune.temperature", recipe.temperature, lambda v: v > 0, "positive")
    _check("finetune.averaging", recipe.averaging, lambda v: 0 <= v < 1, "a decay in [0, 1); 0 switches it off")


def _check_callbacks(config: PruneConfig) -> None:
    weights_only = [name for name, c in config.callbacks.items() if c and c.get("save_weights_only")]
    if config.finetune.averaging and weights_only:
        raise MmpError(
            f"callbacks.{weights_only[0]}.save_weights_only=true saves the weights that are trained, not their average "
            f"(finetune.averaging={config.finetune.averaging}); set save_weights_only=false or finetune.averaging=0"
        )


def _check_reconstruct(reconstruct: ReconstructConfig) -> None:
    _check_choice("reconstruct.name", reconstruct.name, RECONSTRUCTIONS)
    _check("reconstruct.ridge", reconstruct.ridge, lambda v: v > 0, "positive")
    _check("reconstruct.images", reconstruct.images, lambda v: v >= 1, "at least 1")
    _check("reconstruct.rows_per_column", reconstruct.rows_per_column, lambda v: v >= 0, "at least 0; 0 takes all rows")
    _check("reconstruct.cache_megabytes", reconstruct.cache_megabytes, lambda v: v >= 0, "at least 0")
    tuning = reconstruct.tuning
    least = "at least 64, of which 32 are held out"
    _check("reconstruct.tuning.images", tuning.images, lambda v: v >= 64, least)
    _check("reconstruct.tuning.steps", tuning.steps, lambda v: v >= 1, "at least 1")
    _check("reconstruct.tuning.learning_rate", tuning.learning_rate, lambda v: v > 0, "positive")
    _check("reconstruct.tuning.batch_size", tuning.batch_size, lambda v: v >= 1, "at least 1")
    _check("reconstruct.tuning.logits", tuning.logits, lambda v: v >= 0, "at least 0")
    _check_choice("reconstruct.tuning.precision", tuning.precision, TUNING_PRECISIONS)


def _check_criterion(config: PruneConfig) -> None:
    name, target = config.criterion.get("name"), config.criterion.get("_target_")
    if not name or (name != NO_CRITERION and not target):
        raise MmpError(
            f"criterion={config.criterion}: must have a name and a _target_, the class of the criterion; "
            "criterion=none needs no class"
        )
    if config.match and name == NO_CRITERION:
        raise MmpError(
            f"match={config.match}: is for baselines, but criterion=none; choose a criterion, or run all of them with "
            f"mmp-prune -m match={config.match}"
        )


def _check_allocation(allocation: AllocationConfig) -> None:
    _check("allocation.trials", allocation.trials, lambda v: v >= 1, "at least 1")
    _check("allocation.tolerance", allocation.tolerance, lambda v: v >= 0, "at least 0 percentage points")


def _check_strategy(strategy: StrategyConfig) -> None:
    _check("strategy.position", strategy.position, lambda v: 0 <= v <= 1, "a position in [0, 1]")


# --- the keys of mmp-plan ---


def _check_plan(config: PlanConfig) -> None:
    if config.criterion["name"] != NO_CRITERION:
        raise MmpError(
            f"criterion={config.criterion['name']}: a plan shows ranges and strategies, and a baseline has neither; "
            "leave it out"
        )
    if config.allocation.name != STRATEGY:
        raise MmpError(f"allocation={config.allocation.name}: a plan shows what strategies do; leave it out")
    if config.picture and not config.picture.endswith(".png"):
        raise MmpError(f"picture={config.picture}: must be the name of a .png file")
    _check_choice("format", config.format, FORMATS)
    if config.ranges.source == "observed" and config.data is None:
        raise MmpError(
            "ranges.source=observed: needs a trained model and data; choose data=..., or a table of rules (ranges=...)"
        )
