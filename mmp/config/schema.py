"""The schema behind ``conf/``: every key a user can set, and its type.

Hydra composes YAML files into these dataclasses, so composing catches an unknown key or a wrong type;
:mod:`mmp.config.validate` then checks the values. This module imports neither torch nor Lightning, so a mistake on the
command line is reported within a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import MISSING

# OmegaConf evaluates these annotations and supports Optional[X] better than X | None.
# ruff: noqa: UP045

NO_CRITERION = "none"  # the value of criterion.name where the run is no baseline
NO_NETWORK = "model.name: must be set to a model of timm, or model._target_ to a class or function of your own"
JOINT = "joint"  # the value of reconstruct.name with a tuning
STRATEGY, SEARCHED = "strategy", "searched"  # values of allocation.name; any other is the name of a criterion


@dataclass
class ModelConfig:
    """A timm model, or a network of the user.

    Attributes:
        name: timm's name of the architecture; empty for a network of the user.
        label: A shorter name for folders and reports; null uses ``name``, or the name of the class.
        num_classes: Number of classes; null takes it from the data.
        in_chans: Number of input channels.
        image_size: Size to which images are resized if the data set sets none; null is the size that timm states for
            the model.
        mean: Mean of each channel that the network was trained with, for pixels in [0, 1]; null is the mean that timm
            states for the model.
        std: Standard deviation of each channel, in the same way.
        pretrained: Whether the dense training starts from timm's pretrained weights.
        pretrained_file: A file to read these weights from.
        checkpoint: A file with a dense model that is already trained on these data; the dense training is skipped.
        weights_key: Which weights of these files to take if a file holds several, such as ``state_dict_ema``; null
            takes those that were trained, not their average.
        kwargs: Further arguments of ``timm.create_model``, or all arguments of ``_target_``.
        _target_: The address of the user's class or function, such as ``my_models.ResNet20``; null for a timm model.
    """

    name: str = ""
    label: Optional[str] = None
    num_classes: Optional[int] = None
    in_chans: int = 3
    image_size: Optional[int] = None
    mean: Optional[list[float]] = None
    std: Optional[list[float]] = None
    pretrained: bool = False
    pretrained_file: Optional[str] = None
    checkpoint: Optional[str] = None
    weights_key: Optional[str] = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    _target_: Optional[str] = None

    @property
    def title(self) -> str:
        """The model's name in folders, logs and reports: its label, else timm's name or the name of the class."""
        return self.label or (self._target_ or "").replace(":", ".").rpartition(".")[2] or self.name

    @property
    def setting(self) -> str:
        """The setting that names the architecture, for error messages: ``model.name=resnet18``."""
        return f"model._target_={self._target_}" if self._target_ else f"model.name={self.name}"


@dataclass
class DataConfig:
    """A data set, its preprocessing and its four disjoint splits.

    If ``image_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct`` or ``crop_mode`` is null, the value that
    ``model`` or timm states for the network is used.

    Attributes:
        name: Name of the data set.
        reader: A key of ``mmp.data.readers.READERS``.
        root: Folder of the files; like every path here, it may begin with ``~``.
        download: Whether to download files that are missing.
        classes: Number of classes.
        channels: Number of channels; for image files, 1 is grey, 2 grey and alpha, 3 colour, 4 colour and alpha.
        background: Colour over which transparent image files are composed, for one or three channels.
        image_size: Height and width of the model's input, in pixels.
        patch_size: Patch size of a vision transformer on these images; read only by interpolations in ``conf/model``.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        interpolation: Interpolation of the resizing, by timm's name.
        crop_pct: Fraction of the resized image that the centre crop keeps.
        crop_mode: How images that are not square are cropped, by timm's name.
        augment: Arguments of ``timm.data.create_transform`` for training images; null switches augmentation off.
        augment_batches: Whether images in memory are augmented a batch at a time, if all of ``augment`` can be.
        in_memory: Whether image files are read once, resized to the model's input, and augmented from there.
        validation: Fraction of the training images that form the validation split, if the data set has no official
            validation set.
        calibration: Fraction of the training images that form the calibration split.
        test: Fraction of all images that form the test split, if the data set has no official test set.
        batch_size: Images in a training batch.
        eval_batch_size: Images in an evaluation batch.
        workers: Processes that load images; 0 loads them in the main process.
        dense_epochs: Epochs of the dense training; read only by an interpolation in ``conf/dense``.
        finetune_epochs: Epochs of fine-tuning; read only by interpolations in ``conf/finetune``.
    """

    name: str = MISSING
    reader: str = MISSING
    root: Optional[str] = None
    download: bool = False
    classes: int = MISSING
    channels: int = 3
    background: str = "white"
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
    """How to train.

    Attributes:
        name: Name of the recipe.
        epochs: Number of epochs. If there are fewer than the warm-up takes, the warm-up is shortened.
        optimizer: Optimizer, by timm's name.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay.
        scheduler: Schedule of the learning rate, by timm's name; ``none`` keeps the rate constant.
        by_step: Whether the rate changes at every step instead of once an epoch, which short trainings need.
        layer_decay: Factor on the learning rate for every layer that is farther from the output; null for none.
        warmup_epochs: Length of the warm-up; a fraction needs ``by_step``.
        min_learning_rate: Final learning rate.
        label_smoothing: Label smoothing of the loss, in [0, 1).
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
    """How to train a pruned model.

    Attributes:
        gentle: If set, the best of three is chosen on validation: no fine-tuning, this fraction of the learning rate,
            and the full learning rate.
        distillation: Share of the loss that is the divergence from the dense model's logits, in [0, 1].
        temperature: Temperature that divides the logits of both models in this divergence.
        averaging: Decay of a moving average of the weights, which becomes the final model; 0 switches it off.
        reestimate_norms: Whether batch norms re-estimate their means and variances on the calibration images at the
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
    """The position of each layer in its range; the fields of ``mmp.pruning.strategies.Strategy``."""

    name: str = MISSING
    position: float = 0.0
    groups: dict[str, float] = field(default_factory=dict)
    proportional: Optional[float] = None
    reference: str = "total"


@dataclass
class SelectorConfig:
    """A condition on layers; the fields of ``mmp.pruning.ranges.Selector``."""

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
    """Limits on ranges of any source; the fields of ``mmp.pruning.ranges.Constraints``."""

    small_below: int = 10_000
    small: list[float] = field(default_factory=lambda: [0.0, 0.10])
    patch_embed: Optional[list[float]] = field(default_factory=lambda: [0.15, 0.30])
    ceiling: float = 0.98


@dataclass
class RangesConfig:
    """The source of every layer's range: a rule table, or the sparsities observed under criteria at global targets.

    Attributes:
        name: Name of the range table.
        source: ``rules`` or ``observed``.
        strict: Whether a rule that selects no layer is an error.
        rules: The rules. At most one of them may select a layer.
        default: Range of the layers that no rule selects.
        groups: Selectors of the groups of layers that strategies name.
        constraints: Limits on all ranges.
        criteria: Criteria to observe.
        targets: Global sparsities at which they are observed.
        grasp_temperature: Temperature that divides the logits in GraSP's loss.
    """

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
    """The target that every strategy is shifted to meet: a global sparsity, or a size on disk.

    Attributes:
        sparsity: Global sparsity in [0, 1).
        megabytes: Size on disk, in units of 10^6 bytes.
        strategies: Global sparsities of single strategies; they take precedence over ``sparsity``.
        macs: Share of the dense model's multiply-adds that may be left, in (0, 1]; only with ``pattern=channels``.
    """

    sparsity: Optional[float] = None
    megabytes: Optional[float] = None
    strategies: dict[str, float] = field(default_factory=dict)
    macs: Optional[float] = None

    def of(self, strategy: str) -> Optional[float]:
        """Return the global sparsity that a strategy must meet; None if the budget sets none for it."""
        return self.strategies.get(strategy, self.sparsity)


@dataclass
class AllocationConfig:
    """The method that decides each layer's sparsity.

    Attributes:
        name: ``strategy``, ``searched``, or the name of a criterion.
        trials: Number of models that a search tries.
        tolerance: Percentage points of validation accuracy that a search without a budget may lose.
    """

    name: str = STRATEGY
    trials: int = 32
    tolerance: float = 1.0


@dataclass
class TuningConfig:
    """How the kept weights of all layers are tuned together (``mmp.pruning.reconstruction.joint``).

    Attributes:
        images: Number of calibration images, at most. A tenth of them, at least 32, is held out.
        steps: Number of steps.
        learning_rate: Highest learning rate of Adam, as a share of the size of each parameter's values.
        batch_size: Number of images of a step.
        logits: Weight of the divergence of the logits, beside the mean error of the blocks' outputs.
        precision: ``32-true`` or ``bf16-mixed``.
        compile: Whether steps are compiled by ``torch.compile``.
    """

    images: int = 3000
    steps: int = 1000
    learning_rate: float = 0.02
    batch_size: int = 128
    logits: float = 0.1
    precision: str = "32-true"
    compile: bool = False


@dataclass
class ReconstructConfig:
    """Whether and how kept weights are re-solved after masking (``mmp.pruning.reconstruction``).

    Attributes:
        name: ``none``, ``least_squares``, or ``joint``: least squares, then a tuning of all kept weights together.
        ridge: Strength of the pull towards the dense weights, as a share of a layer's mean squared input.
        images: Number of calibration images for least squares, at most.
        cache_megabytes: Dense layer outputs up to this size (in units of 10^6 bytes) are stored in the cache and shared
            by the jobs of a sweep; 0 switches that off.
        rows_per_column: Number of rows of a layer's inputs to solve with, for each column of its weight; 0 takes all.
        tuning: The tuning of ``joint``.
    """

    name: str = "none"
    ridge: float = 0.01
    images: int = 512
    rows_per_column: int = 64
    cache_megabytes: float = 1000.0
    tuning: TuningConfig = field(default_factory=TuningConfig)


@dataclass
class TrainerConfig:
    """Arguments of ``pytorch_lightning.Trainer``, and ``compile``, which compiles training steps by torch.compile."""

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: Optional[float] = None
    deterministic: bool = True
    limit_train_batches: Any = None  # an int is a number of batches, a float in (0, 1] a fraction of them
    limit_val_batches: Any = None
    enable_progress_bar: Optional[bool] = None  # null shows it if a terminal is attached
    log_every_n_steps: int = 10
    compile: bool = False


@dataclass
class PathsConfig:
    """Folders: ``results`` for runs and sweeps, ``cache`` for dense models and scores that runs share."""

    results: str = MISSING
    cache: str = MISSING


@dataclass
class TrainConfig:
    """Everything that ``mmp-train`` reads."""

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
    """Everything that ``mmp-prune`` reads.

    With a ``criterion`` the run is a baseline. Its masks depend neither on ``signal`` nor on the ranges. Its global
    sparsity is set by ``budget``; without one, it is the sparsity of ``strategy``; with ``match``, it is the sparsity
    that this strategy has in the folder of a sweep.
    """

    criterion: dict[str, Any] = field(default_factory=lambda: {"name": NO_CRITERION})  # a class and its arguments
    match: Optional[str] = None
    signal: SignalConfig = field(default_factory=SignalConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    ranges: RangesConfig = field(default_factory=RangesConfig)
    allocation: AllocationConfig = field(default_factory=AllocationConfig)
    schedule: dict[str, Any] = field(default_factory=dict)
    pattern: str = "none"  # of masks: none, N:M, RxC or channels (mmp.pruning.patterns)
    reconstruct: ReconstructConfig = field(default_factory=ReconstructConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    budget: Any = None  # a number or the keys of BudgetConfig; validate makes it one


@dataclass
class PlanConfig(PruneConfig):
    """Everything that ``mmp-plan`` reads: the keys of ``mmp-prune``, but only observed ranges need data."""

    data: Optional[DataConfig] = None  # type: ignore[assignment]
    format: str = "table"
    picture: Optional[str] = None


def is_wandb(node: Mapping[str, Any] | None) -> bool:
    """Return whether an entry of ``logger`` is our W&B run (:mod:`mmp.runs.wandb_run`)."""
    return node is not None and str(node.get("_target_")).rpartition(".")[2] == "WandbRun"
