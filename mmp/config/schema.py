"""The schema behind ``conf/``: every key a user can set, and its type.

Hydra composes YAML files into these dataclasses, so an unknown key or a wrong type is caught while composing;
``mmp.config.validate`` then checks values. Imports neither torch nor Lightning, so mistakes are told in a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import MISSING

from mmp.config.identity import NO_CRITERION

# OmegaConf reads these annotations at run time and knows typing's spelling best.
# ruff: noqa: UP045


@dataclass
class ModelConfig:
    """A timm model.

    ``pretrained`` starts the dense training from timm's weights, or from those in ``pretrained_file``;
    ``checkpoint`` is a dense model already trained for this very data. ``image_size`` is what data sets without a
    size of their own bring images to; null is the size that timm states for the model.
    """

    name: str = MISSING
    label: Optional[str] = None
    num_classes: Optional[int] = None
    in_chans: int = 3
    image_size: Optional[int] = None
    pretrained: bool = False
    pretrained_file: Optional[str] = None
    checkpoint: Optional[str] = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """A data set, its preprocessing and its four disjoint splits (fractions of the training images).

    Null in ``image_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct`` or ``crop_mode`` is what timm states for
    the model.
    ``augment`` holds arguments of timm's ``create_transform`` for training images; null is no augmentation.
    ``augment_batches`` augments images in memory a batch at a time where all of ``augment`` can be; else one by one.
    ``in_memory`` reads image files once, as they are evaluated, and crops and augments what that makes of them.
    """

    name: str = MISSING
    reader: str = MISSING
    root: Optional[str] = None
    download: bool = False
    classes: int = MISSING
    channels: int = 3
    image_size: Optional[int] = None
    patch_size: int = MISSING
    mean: Optional[list[float]] = None
    std: Optional[list[float]] = None
    interpolation: Optional[str] = None
    crop_pct: Optional[float] = None
    crop_mode: Optional[str] = None
    augment: Any = None  # a dictionary; OmegaConf cannot override an optional one that is null
    augment_batches: bool = True
    in_memory: bool = False
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
    """How to train: optimizer and schedule by timm's names. A short training shortens its warm-up, too.

    The rate changes once an epoch, or with ``by_step`` at every step, which a training of few epochs needs.
    ``layer_decay`` multiplies it once more for every layer that is farther from the output.
    """

    name: str = MISSING
    epochs: int = MISSING
    optimizer: str = "adamw"
    learning_rate: float = MISSING
    weight_decay: float = 0.0
    scheduler: str = "cosine"
    by_step: bool = False
    layer_decay: Optional[float] = None
    warmup_epochs: float = 0.0
    min_learning_rate: float = 0.0
    label_smoothing: float = 0.0


@dataclass
class FinetuneConfig(RecipeConfig):
    """How to train what is left after pruning.

    Attributes:
        gentle: If set, none, this share of the rate, or all of it, is chosen on validation.
        distillation: Share of the loss that is the divergence from the dense model's logits.
        temperature: Divides the logits of both for it.
        averaging: Decay of a moving average of the weights, which then is the model; 0 is none.
        reestimate_norms: Whether batch norms take their means and variances anew from the calibration images, at the
            end.
    """

    gentle: Optional[float] = None
    distillation: float = 0.0
    temperature: float = 2.0
    averaging: float = 0.0
    reestimate_norms: bool = False


@dataclass
class SignalConfig:
    """A signal: a class with ``needs`` and ``score`` (see ``mmp.pruning.signals``)."""

    _target_: str = MISSING
    name: str = MISSING


@dataclass
class StrategyConfig:
    """Where each layer goes inside its range; the fields of ``mmp.pruning.strategies.Strategy``."""

    name: str = MISSING
    position: float = 0.0
    groups: dict[str, float] = field(default_factory=dict)
    proportional: Optional[float] = None
    reference: str = "total"


@dataclass
class SelectorConfig:
    """Which layers; the fields of ``mmp.pruning.ranges.Selector``."""

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
    """What holds on top of any source of ranges; the fields of ``mmp.pruning.ranges.Constraints``."""

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
    criteria: list[str] = field(default_factory=lambda: ["mag", "snip", "grasp"])
    targets: list[float] = field(default_factory=lambda: [0.7, 0.8, 0.9])
    grasp_temperature: float = 200.0


@dataclass
class BudgetConfig:
    """What a strategy is shifted to meet: a global sparsity, or a size on disk in megabytes (10^6 bytes).

    ``strategies`` holds sparsities of single strategies, which win over the common one.
    """

    sparsity: Optional[float] = None
    megabytes: Optional[float] = None
    strategies: dict[str, float] = field(default_factory=dict)

    def of(self, strategy: str) -> Optional[float]:
        """Return the global sparsity that a strategy has to meet; None where there is none."""
        return self.strategies.get(strategy, self.sparsity)


@dataclass
class AllocationConfig:
    """What decides each layer's sparsity: ``strategy``, ``searched``, or the name of a criterion.

    Attributes:
        name: Which of them.
        trials: Of a search.
        tolerance: Points of validation accuracy that a search without a budget may lose.
    """

    name: str = "strategy"
    trials: int = 32
    tolerance: float = 1.0


@dataclass
class ReconstructConfig:
    """Whether and how kept weights are re-solved after masking (``mmp.pruning.reconstruction.reconstruct``).

    What the dense layers make of the images is kept in the cache for the other jobs of a sweep, up to
    ``cache_megabytes`` (10^6 bytes); 0 switches that off.
    """

    name: str = "none"
    ridge: float = 0.01
    images: int = 512
    cache_megabytes: float = 1000.0


@dataclass
class TrainerConfig:
    """Arguments of ``pytorch_lightning.Trainer``."""

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: Optional[float] = None
    deterministic: bool = True
    limit_train_batches: Any = None  # a number of batches, or a fraction in (0, 1) of them
    limit_val_batches: Any = None
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
    """Everything that ``prune.py`` reads.

    With a ``criterion`` a run is a baseline: neither ``signal`` nor the ranges decide its masks, and ``strategy`` says
    only whose global sparsity it is pruned to, unless there is a budget. ``match`` takes that sparsity from the folder
    of a sweep.
    """

    criterion: dict[str, Any] = field(default_factory=lambda: {"name": NO_CRITERION})  # a class and its arguments
    match: Optional[str] = None
    signal: SignalConfig = field(default_factory=SignalConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    ranges: RangesConfig = field(default_factory=RangesConfig)
    allocation: AllocationConfig = field(default_factory=AllocationConfig)
    schedule: dict[str, Any] = field(default_factory=dict)
    pattern: str = "none"  # of masks: none, N:M or RxC (mmp.pruning.patterns)
    reconstruct: ReconstructConfig = field(default_factory=ReconstructConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    budget: Any = None  # a number or the keys of BudgetConfig; validate makes it one


@dataclass
class PlanConfig(PruneConfig):
    """Everything that ``python -m mmp.plan`` reads: what ``prune.py`` reads, but only observed ranges need data."""

    data: Optional[DataConfig] = None  # type: ignore[assignment]
    format: str = "table"
    picture: Optional[str] = None


def is_wandb(node: Mapping[str, Any] | None) -> bool:
    """Return whether an entry of ``logger`` is our W&B run (:mod:`mmp.runs.wandb_run`)."""
    return node is not None and str(node.get("_target_")).rpartition(".")[2] == "WandbRun"
