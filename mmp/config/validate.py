"""From what Hydra composed to plain dataclasses, every value checked, with one message per mistake."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmp.config.schema import (
    NO_CRITERION,
    STRATEGY,
    BudgetConfig,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    PlanConfig,
    PruneConfig,
    RangesConfig,
    RecipeConfig,
    SelectorConfig,
    StrategyConfig,
    TrainerConfig,
)
from mmp.errors import MmpError, nearest
from mmp.pruning.patterns import Pattern

RECONSTRUCTIONS = ("none", "least_squares")
FORMATS = ("table", "json", "md", "csv")


def validate(cfg: DictConfig) -> Any:
    """Return the configuration as plain dataclasses, every value checked.

    Args:
        cfg: What Hydra composed.

    Returns:
        A ``TrainConfig``, ``PruneConfig`` or ``PlanConfig`` of ``mmp.config``, interpolations resolved.

    Raises:
        MmpError: naming the key, the value and what would be right.
    """
    config: Any = OmegaConf.to_object(cfg)
    for key in ("num_classes", "in_chans"):
        if getattr(config.model, key) is not None:
            _check(f"model.{key}", getattr(config.model, key), lambda v: v >= 1, "at least 1")
    if config.data is not None:
        _check_data(config.data)
        _join(config.model, config.data)
    _check_trainer(config.trainer)
    _check_recipe("dense", config.dense, least_epochs=1)
    if isinstance(config, PruneConfig):
        _complete_ranges(config.ranges)
        config.budget = read_budget(config.budget)
        Pattern.parse(config.pattern)
        _check_recipe("finetune", config.finetune, least_epochs=0)
        _check_finetune(config.finetune)
        weights_only = [name for name, c in config.callbacks.items() if c and c.get("save_weights_only")]
        if config.finetune.averaging and weights_only:
            raise MmpError(
                f"callbacks.{weights_only[0]}.save_weights_only=true keeps the weights that are trained, not their "
                f"average (finetune.averaging={config.finetune.averaging}); set one of the two to false or 0"
            )
        if config.reconstruct.name not in RECONSTRUCTIONS:
            told = nearest(config.reconstruct.name, RECONSTRUCTIONS)
            raise MmpError(f"reconstruct.name={config.reconstruct.name}: no such method; {told}")
        _check("reconstruct.ridge", config.reconstruct.ridge, lambda v: v > 0, "positive")
        _check("reconstruct.images", config.reconstruct.images, lambda v: v >= 1, "at least 1")
        _check("reconstruct.cache_megabytes", config.reconstruct.cache_megabytes, lambda v: v >= 0, "at least 0")
        _check_criterion(config)
        _check("allocation.trials", config.allocation.trials, lambda v: v >= 1, "at least 1")
        _check("allocation.tolerance", config.allocation.tolerance, lambda v: v >= 0, "at least 0 points")
        _check("strategy.position", config.strategy.position, lambda v: 0 <= v <= 1, "a position in [0, 1]")
    if isinstance(config, PlanConfig):
        if config.picture and not config.picture.endswith(".png"):
            raise MmpError(f"picture={config.picture}: only .png can be drawn; choose a name that ends so")
        if config.format not in FORMATS:
            raise MmpError(f"format={config.format}: no such format; {nearest(config.format, FORMATS)}")
        if config.ranges.source == "observed" and config.data is None:
            raise MmpError("ranges.source=observed needs a trained model and data; choose data=..., or another table")
    return config


def _check_criterion(config: PruneConfig) -> None:
    name, target = config.criterion.get("name"), config.criterion.get("_target_")
    if not name or (name != NO_CRITERION and not target):
        raise MmpError(f"criterion={config.criterion}: must have a name and, unless that is none, a _target_ class")
    if config.match and name == NO_CRITERION:
        raise MmpError(
            f"match={config.match} is for baselines, but criterion=none; choose a criterion, or all of them with "
            f"python prune.py -m match={config.match}"
        )
    if config.match:
        config.budget = BudgetConfig()  # an experiment may set one for its strategies; their sparsities count
    if isinstance(config, PlanConfig):
        if name != NO_CRITERION:
            raise MmpError(f"criterion={name}: a plan shows ranges and strategies; a baseline needs its scores")
        if config.allocation.name != STRATEGY:
            raise MmpError(f"allocation={config.allocation.name}: a plan shows what strategies do; leave it out")


def _join(model: ModelConfig, data: DataConfig) -> None:
    """Give a model without a number of classes that of the data, and raise where the two contradict each other."""
    if model.num_classes is None:
        model.num_classes = data.classes
    elif model.num_classes != data.classes:
        raise MmpError(f"model.num_classes={model.num_classes}, but data={data.name} has {data.classes} classes")
    if model.in_chans != data.channels:
        raise MmpError(f"model.in_chans={model.in_chans}, but data={data.name} has {data.channels} channels")


def _check_trainer(trainer: TrainerConfig) -> None:
    _check("trainer.devices", trainer.devices, lambda v: v >= 1, "at least 1")
    _check("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, lambda v: v >= 1, "at least 1")

    def limits(value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        return value is None or whole or (isinstance(value, float) and 0 < value <= 1)

    for key in ("limit_train_batches", "limit_val_batches"):
        _check(f"trainer.{key}", getattr(trainer, key), limits, "a number of batches, or a fraction of them in (0, 1]")


def read_ranges(node: DictConfig) -> RangesConfig:
    """Return the configuration of one range table, checked as :func:`validate` does."""
    ranges: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RangesConfig), node))
    _complete_ranges(ranges)
    return ranges


def read_strategy(node: DictConfig) -> StrategyConfig:
    """Return the configuration of one strategy; its values are checked where it is built."""
    strategy: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StrategyConfig), node))
    return strategy


def _complete_ranges(ranges: RangesConfig) -> None:
    ranges.groups = {name: _selectors(name, value) for name, value in ranges.groups.items()}
    _check_ranges(ranges)


def _check_data(data: DataConfig) -> None:
    for key in ("validation", "calibration", "test"):
        _check(f"data.{key}", getattr(data, key), lambda v: 0 < v < 1, "a fraction between 0 and 1")
    share = data.validation + data.calibration
    _check("data.validation + data.calibration", share, lambda v: v < 1, "less than 1, so that images are left")
    for key in ("batch_size", "eval_batch_size", "classes", "channels", "image_size"):
        if getattr(data, key) is not None:
            _check(f"data.{key}", getattr(data, key), lambda v: v >= 1, "at least 1")
    _check("data.workers", data.workers, lambda v: v >= 0, "at least 0")
    expected = "null, or arguments of timm's create_transform, such as {hflip: 0.5}"
    _check("data.augment", data.augment, lambda v: v is None or isinstance(v, dict), expected)
    for key in ("mean", "std"):
        expected = f"one number per channel ({data.channels})"
        if getattr(data, key) is not None:
            _check(f"data.{key}", getattr(data, key), lambda v: len(v) == data.channels, expected)
    if data.std is not None:
        _check("data.std", data.std, lambda v: min(v) > 0, "positive")
    if data.crop_pct is not None:
        _check("data.crop_pct", data.crop_pct, lambda v: 0 < v <= 1, "a fraction of the image in (0, 1]")


def read_budget(node: Any) -> BudgetConfig:
    """Return a budget, checked: from nothing, a global sparsity, a mapping of the keys of ``BudgetConfig``, or one."""
    if node is None:
        return BudgetConfig()
    if _number(node):
        node = {"sparsity": node}
    if isinstance(node, BudgetConfig):
        node = vars(node)
    if not isinstance(node, dict):
        raise MmpError(f"budget={node!r}: must be a global sparsity such as 0.9, or budget.megabytes=...")
    for key in node:
        if key not in BudgetConfig.__dataclass_fields__:
            raise MmpError(f"budget.{key}: no such key; {nearest(str(key), BudgetConfig.__dataclass_fields__)}")
    budget = BudgetConfig(**node)
    if budget.megabytes is not None and (budget.sparsity is not None or budget.strategies):
        others = [f"budget.sparsity={budget.sparsity}"] if budget.sparsity is not None else []
        others += [f"budget.strategies.{name}={value}" for name, value in budget.strategies.items()]
        raise MmpError(
            f"budget.megabytes={budget.megabytes} is set beside {', '.join(others)}, but a strategy can meet only one; "
            "clear the others with budget.sparsity=null '~budget.strategies', or budget.megabytes=null"
        )
    for key, value in {"": budget.sparsity, **{f".strategies.{n}": v for n, v in budget.strategies.items()}}.items():
        if value is not None:
            _check(f"budget{key}", value, lambda v: _number(v) and 0 <= v < 1, "a global sparsity in [0, 1)")
    if budget.megabytes is not None:
        _check("budget.megabytes", budget.megabytes, lambda v: _number(v) and v > 0, "a positive number of 10^6 bytes")
    return budget


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _selectors(group: str, entries: Any) -> list[SelectorConfig]:
    # OmegaConf knows no mapping from names to lists of dataclasses, so these are typed here.
    if not isinstance(entries, list):
        raise MmpError(f"ranges.groups.{group}={entries}: must be a list of selectors, such as [{{role: [conv]}}]")
    for entry in entries:
        for key in entry:
            if key not in SelectorConfig.__dataclass_fields__:
                close = nearest(key, SelectorConfig.__dataclass_fields__)
                raise MmpError(f"ranges.groups.{group}: a selector has no key {key!r}; {close}")
    return [OmegaConf.to_object(OmegaConf.structured(SelectorConfig(**entry))) for entry in entries]  # type: ignore[misc]


def _check_recipe(key: str, recipe: RecipeConfig, least_epochs: int) -> None:
    _check(f"{key}.epochs", recipe.epochs, lambda v: v >= least_epochs, f"at least {least_epochs}")
    _check(f"{key}.learning_rate", recipe.learning_rate, lambda v: v > 0, "positive")
    _check(f"{key}.weight_decay", recipe.weight_decay, lambda v: v >= 0, "at least 0")
    _check(f"{key}.warmup_epochs", recipe.warmup_epochs, lambda v: v >= 0, "at least 0")
    if not recipe.by_step:
        said = f"whole, or {key}.by_step=true, so that rates change within an epoch"
        _check(f"{key}.warmup_epochs", recipe.warmup_epochs, lambda v: v == int(v), said)
    _check(f"{key}.layer_decay", recipe.layer_decay, lambda v: v is None or 0 < v <= 1, "null, or a factor in (0, 1]")
    _check(f"{key}.label_smoothing", recipe.label_smoothing, lambda v: 0 <= v < 1, "in [0, 1)")


def _check_finetune(recipe: FinetuneConfig) -> None:
    if recipe.gentle is not None:
        _check("finetune.gentle", recipe.gentle, lambda v: 0 < v < 1, "a share of the learning rate in (0, 1)")
        _check("finetune.epochs", recipe.epochs, lambda v: v >= 1, "at least 1, for gentle to mean anything")
    _check("finetune.distillation", recipe.distillation, lambda v: 0 <= v <= 1, "a share of the loss in [0, 1]")
    _check("finetune.temperature", recipe.temperature, lambda v: v > 0, "positive")
    _check("finetune.averaging", recipe.averaging, lambda v: 0 <= v < 1, "a decay in [0, 1), 0 for none")


def _check_ranges(ranges: RangesConfig) -> None:
    if ranges.source not in ("rules", "observed"):
        raise MmpError(f"ranges.source={ranges.source!r}; {nearest(ranges.source, ('rules', 'observed'))}")
    for target in ranges.targets:
        _check("ranges.targets", target, lambda v: 0 <= v < 1, "global sparsities in [0, 1)")
    ceiling = ranges.constraints.ceiling
    _check("ranges.constraints.ceiling", ceiling, lambda v: 0 < v < 1, "between 0 and 1, so that no layer is emptied")
    _check("ranges.grasp_temperature", ranges.grasp_temperature, lambda v: v > 0, "positive")
    pairs = {"ranges.default": ranges.default, "ranges.constraints.small": ranges.constraints.small}
    pairs["ranges.constraints.patch_embed"] = ranges.constraints.patch_embed
    pairs |= {f"ranges.rules[{i}].range": rule.range for i, rule in enumerate(ranges.rules)}
    for key, pair in pairs.items():
        if pair is not None:
            ok = "two sparsities 0 <= lo <= hi <= 1"
            _check(key, pair, lambda v: len(v) == 2 and 0 <= v[0] <= v[1] <= 1, ok)


def _check(key: str, value: Any, holds: Any, expected: str) -> None:
    if not holds(value):
        raise MmpError(f"{key}={value} is out of range: must be {expected}")
