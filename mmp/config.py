"""The schema behind ``conf/``: every key a user can set, its type, its bounds, and one message per mistake.

Hydra composes YAML files into these dataclasses, so an unknown key or a wrong type is caught while composing;
:func:`validate` then checks values. Imports neither torch nor Lightning, so mistakes are told in a second.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from mmp.errors import MmpError, nearest

# OmegaConf reads these annotations at run time and knows typing's spelling best.
# ruff: noqa: UP045


@dataclass
class ModelConfig:
    """A timm model. ``checkpoint`` starts from trained weights instead of training a dense model."""

    name: str = MISSING
    label: Optional[str] = None
    num_classes: int = MISSING
    in_chans: int = MISSING
    pretrained: bool = False
    checkpoint: Optional[str] = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """A data set, its preprocessing and its four disjoint splits (fractions of the training images)."""

    name: str = MISSING
    reader: str = MISSING
    root: Optional[str] = None
    classes: int = MISSING
    channels: int = MISSING
    image_size: int = MISSING
    patch_size: int = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING
    validation: float = 0.1
    calibration: float = 0.1
    test: float = 0.2
    batch_size: int = 128
    eval_batch_size: int = 512
    workers: int = 0
    dense_epochs: int = 20
    finetune_epochs: int = 5


@dataclass
class RecipeConfig:
    """How to train: optimizer and schedule by timm's names. A short training shortens its warm-up, too."""

    name: str = MISSING
    epochs: int = MISSING
    optimizer: str = "adamw"
    learning_rate: float = MISSING
    weight_decay: float = 0.0
    scheduler: str = "cosine"
    warmup_epochs: int = 0
    min_learning_rate: float = 0.0
    label_smoothing: float = 0.0


@dataclass
class SignalConfig:
    """A signal: a class with ``needs`` and ``score`` (see ``mmp.signals``)."""

    _target_: str = MISSING
    name: str = MISSING


@dataclass
class StrategyConfig:
    """Where each layer goes inside its range; the fields of ``mmp.strategies.Strategy``."""

    name: str = MISSING
    position: float = 0.0
    groups: dict[str, float] = field(default_factory=dict)
    proportional: Optional[float] = None
    reference: str = "total"


@dataclass
class SelectorConfig:
    """Which layers; the fields of ``mmp.ranges.Selector``."""

    role: list[str] = field(default_factory=list)
    stage: list[int] = field(default_factory=list)
    depth: Optional[list[float]] = None
    position: Optional[list[float]] = None
    rank: Optional[list[int]] = None
    name: Optional[str] = None
    min_size: int = 0


@dataclass
class RuleConfig(SelectorConfig):
    """A selector and the range of the layers that it selects."""

    range: list[float] = MISSING


@dataclass
class ConstraintsConfig:
    """What holds on top of any source of ranges; the fields of ``mmp.ranges.Constraints``."""

    small_below: int = 10_000
    small: list[float] = field(default_factory=lambda: [0.0, 0.10])
    patch_embed: Optional[list[float]] = field(default_factory=lambda: [0.15, 0.30])
    ceiling: float = 0.98


@dataclass
class RangesConfig:
    """Where ranges come from: a rule table, or criteria observed at global targets."""

    name: str = MISSING
    source: str = "rules"
    strict: bool = True
    rules: list[RuleConfig] = field(default_factory=list)
    default: Optional[list[float]] = None
    groups: dict[str, Any] = field(default_factory=dict)  # lists of SelectorConfig, checked by validate
    constraints: ConstraintsConfig = field(default_factory=ConstraintsConfig)
    criteria: list[str] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)
    grasp_temperature: float = 200.0


@dataclass
class TrainerConfig:
    """Arguments of ``pytorch_lightning.Trainer``."""

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: Optional[float] = None
    deterministic: bool = True
    limit_train_batches: Optional[float] = None
    limit_val_batches: Optional[float] = None
    enable_progress_bar: Optional[bool] = None  # None: where a terminal is attached
    log_every_n_steps: int = 10


@dataclass
class PathsConfig:
    """Folders: ``results`` holds runs and sweeps, ``cache`` dense models and scores that runs share."""

    results: str = MISSING
    cache: str = MISSING


@dataclass
class TrainConfig:
    """Everything that ``train.py`` reads."""

    seed: int = 0
    sweep: str = "sweep"
    force: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    dense: RecipeConfig = field(default_factory=RecipeConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass
class PruneConfig(TrainConfig):
    """Everything that ``prune.py`` reads."""

    signal: SignalConfig = field(default_factory=SignalConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    ranges: RangesConfig = field(default_factory=RangesConfig)
    schedule: dict[str, Any] = field(default_factory=dict)
    finetune: RecipeConfig = field(default_factory=RecipeConfig)
    budget: Optional[float] = None


def register() -> None:
    """Make the schema and our resolvers known to Hydra; called when an entry point is imported."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="prune_schema", node=PruneConfig)
    OmegaConf.register_new_resolver("mmp.run_name", lambda *, _root_: run_name(_root_), replace=True)


def validate(cfg: DictConfig) -> Any:
    """Return the configuration as plain dataclasses, every value checked.

    Args:
        cfg: What Hydra composed.

    Returns:
        A :class:`TrainConfig` or :class:`PruneConfig`, interpolations resolved.

    Raises:
        MmpError: naming the key, the value and what would be right.
    """
    config: Any = OmegaConf.to_object(cfg)
    data, trainer = config.data, config.trainer
    for key in ("validation", "calibration", "test"):
        _check(f"data.{key}", getattr(data, key), lambda v: 0 < v < 1, "a fraction between 0 and 1")
    share = data.validation + data.calibration
    _check("data.validation + data.calibration", share, lambda v: v < 1, "less than 1, so that images are left")
    for key in ("batch_size", "eval_batch_size", "classes", "channels", "image_size"):
        _check(f"data.{key}", getattr(data, key), lambda v: v >= 1, "at least 1")
    _check("data.workers", data.workers, lambda v: v >= 0, "at least 0")
    for key in ("mean", "std"):
        value = getattr(data, key)
        _check(
            f"data.{key}",
            value,
            lambda v: len(v) == data.channels,
            f"one number per channel ({data.channels})",
        )
    _check("data.std", data.std, lambda v: min(v) > 0, "positive")
    _check("trainer.devices", trainer.devices, lambda v: v >= 1, "at least 1")
    _check("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, lambda v: v >= 1, "at least 1")
    _check_recipe("dense", config.dense, least_epochs=1)
    if isinstance(config, PruneConfig):
        _check_recipe("finetune", config.finetune, least_epochs=0)
        config.ranges.groups = {name: _selectors(name, value) for name, value in config.ranges.groups.items()}
        _check_ranges(config.ranges)
        _check("strategy.position", config.strategy.position, lambda v: 0 <= v <= 1, "a position in [0, 1]")
        if config.budget is not None:
            _check("budget", config.budget, lambda v: 0 <= v < 1, "a global sparsity in [0, 1)")
    return config


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
    _check(f"{key}.label_smoothing", recipe.label_smoothing, lambda v: 0 <= v < 1, "in [0, 1)")


def _check_ranges(ranges: RangesConfig) -> None:
    if ranges.source not in ("rules", "observed"):
        raise MmpError(f"ranges.source={ranges.source!r}; {nearest(ranges.source, ('rules', 'observed'))}")
    for target in ranges.targets:
        _check("ranges.targets", target, lambda v: 0 <= v < 1, "global sparsities in [0, 1)")
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


# What does not change a run's numbers, and so is no part of its identity.
_INCIDENTAL = {"paths", "logger", "sweep", "force", "hydra"}
_INCIDENTAL_IN = {
    "trainer": {"enable_progress_bar", "log_every_n_steps"},
    "data": {"workers", "eval_batch_size", "dense_epochs", "finetune_epochs"},
    "callbacks": {"progress"},
}


def identity(cfg: Any) -> dict[str, Any]:
    """Return the settings that decide a run's numbers, as plain data."""
    if isinstance(cfg, DictConfig):
        kept: dict[str, Any] = {str(key): _plain(cfg[key]) for key in cfg if key not in _INCIDENTAL}
    else:
        kept = {key: value for key, value in asdict(cfg).items() if key not in _INCIDENTAL}
    for section, incidental in _INCIDENTAL_IN.items():
        kept[section] = {key: value for key, value in kept[section].items() if key not in incidental}
    if (checkpoint := kept["model"]["checkpoint"]) and Path(checkpoint).is_file():
        kept["model"] = {**kept["model"], "checkpoint": _file_digest(checkpoint, Path(checkpoint).stat().st_mtime_ns)}
    return kept


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


@lru_cache
def _file_digest(path: str, _changed: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """Return a SHA-256 of plain data, the same for the same content whatever the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def run_name(cfg: Any) -> str:
    """Return the folder name of a run: readable parts, then eight digits of the hash of its settings."""
    parts = [cfg.model.label or cfg.model.name, cfg.data.name]
    if "strategy" in cfg:
        parts += [cfg.signal.name, cfg.strategy.name]
    return "-".join([*parts, f"s{cfg.seed}", digest(identity(cfg))[:8]])
