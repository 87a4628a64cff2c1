"""A trial step: a training of one tiny batch with a job's own model, recipe, precision, device and callbacks.

It runs when a job is checked. A setting with which no training can work is therefore found before anything is trained.
A marker in the cache records that a trial has passed, so that the other jobs of a sweep do not repeat it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import timm
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mmp.config.identity import digest, with_sources
from mmp.config.schema import FinetuneConfig, TrainConfig
from mmp.config.source_code import own_source_digest, source_digest
from mmp.data.loader import EpochLoader, EpochShuffle
from mmp.errors import MmpError, first_line
from mmp.files import locked, read_json, write_json
from mmp.models.networks import build_bare
from mmp.training.channels_last import put_channels_last
from mmp.training.classifier import Classifier
from mmp.training.evaluation import accuracy, device_of
from mmp.training.logits import require_logits
from mmp.training.monitors import is_monitored_by
from mmp.training.step_memory import StepMemory
from mmp.training.trainer import build_callbacks, build_trainer, fit

Masking = Callable[[nn.Module], Sequence[pl.Callback]]

_VERSIONS = (torch.__version__, timm.__version__, pl.__version__)

# Values with which a training works. Where a trial fails with a setting and passes with its value here, the setting is
# the reason. The sections dense and finetune have the keys of `_OF_RECIPE`.
_OF_RECIPE = {"optimizer": "adamw", "scheduler": "none", "layer_decay": None, "averaging": 0.0, "distillation": 0.0}
_OF_TRAINER = {
    "precision": "32-true",
    "accelerator": "auto",
    "devices": 1,
    "gradient_clip_val": None,
    "accumulate_grad_batches": 1,
    "log_every_n_steps": 10,
    "deterministic": False,
}
_OF_DATA = {"batch_size": 2}


def try_training(config: TrainConfig, masking: Masking = lambda _: ()) -> dict[str, StepMemory]:
    """Run one training step and one validation step for each recipe of a job, unless the same trial has passed before.

    The model has random weights, and the images are random numbers. The state of all random number generators is
    restored.

    Args:
        config: The configuration, validated and complete.
        masking: Returns the callbacks that fine-tuning adds to the configured ones, given the model.

    Returns:
        The memory that a step of each recipe needs.

    Raises:
        MmpError: if a step fails. The message names the setting that is the reason, and a value that works.
    """
    marker = Path(config.paths.cache) / "trials" / f"{digest(_decisive(config))[:16]}.json"
    if (passed := _passed(marker)) is not None:
        return passed
    try:
        with locked(Path(f"{marker}.lock"), str(marker)):
            if (passed := _passed(marker)) is None:
                passed = _try(config, masking)
                steps = {section: asdict(step) for section, step in passed.items()}
                write_json(marker, {**_decisive(config), "memory": steps})
    except OSError as error:
        raise MmpError(f"cannot write the cache {marker.parent}: {error}; set paths.cache to another folder") from error
    return passed


def _passed(marker: Path) -> dict[str, StepMemory] | None:
    """Return what a trial that has passed has measured; None if there was none."""
    content = read_json(marker)
    return content and {section: StepMemory(**step) for section, step in content.get("memory", {}).items()}


def _decisive(config: TrainConfig) -> dict[str, Any]:
    """Return everything that decides whether a trial passes."""
    settings = asdict(config)
    sections = ("model", "dense", "finetune", "trainer", "callbacks")
    data = {key: settings["data"][key] for key in ("classes", "channels", "image_size")}
    return {
        **with_sources({section: settings[section] for section in sections if section in settings}),
        "data": {**data, "batch_size": min(config.data.batch_size, 2)},
        "device": str(device_of(config)),
        "versions": [*_VERSIONS, own_source_digest("training", "models")],
    }


def _try(config: TrainConfig, masking: Masking) -> dict[str, StepMemory]:
    with _undisturbed(), TemporaryDirectory() as folder:
        require_logits(config)
        measured = {}
        for section in _sections(config):
            trial = Trial(config, section, masking, Path(folder) / section)
            try:
                measured[section] = trial.run()
            except Exception as error:  # a model, an optimizer or a callback can raise any exception
                raise trial.explained(error) from error
        return measured


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the random state and silence warnings; the training itself repeats them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with isolate_rng(include_cuda=torch.cuda.is_available()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _sections(config: TrainConfig) -> list[str]:
    """Return the names of the recipes by which the job trains."""
    sections = [] if config.model.checkpoint else ["dense"]
    recipe = getattr(config, "finetune", None)
    return [*sections, "finetune"] if recipe and recipe.epochs else sections


@dataclass(frozen=True)
class Trial:
    """The trial of one recipe.

    Attributes:
        config: The job's configuration.
        section: The recipe: ``dense`` or ``finetune``.
        masking: Returns the callbacks that fine-tuning adds.
        folder: The folder for checkpoints and metrics.
    """

    config: TrainConfig
    section: str
    masking: Masking
    folder: Path

    def failure(self) -> Exception | None:
        """Train for one step, and return the error if that fails."""
        try:
            self.run()
        except Exception as error:  # a model, an optimizer or a callback can raise any exception
            return error
        return None

    def run(self) -> StepMemory:
        """Train for one step, validate, and measure the model as after a training; return the memory of a step."""
        config, recipe = self._alone, getattr(self.config, self.section)
        build_trainer(self.config, recipe.epochs, [], [], self.folder)  # with all devices
        model = put_channels_last(build_bare(config.model), config)
        teacher = build_bare(config.model) if isinstance(recipe, FinetuneConfig) and recipe.distillation else None
        module = Classifier(model, recipe, config.data.classes, teacher, config.seed)
        data = _RandomImages(config)
        callbacks = [*self._callbacks(model), _StopAfterOneEpoch()]
        trainer = build_trainer(config, recipe.epochs, callbacks, [], self.folder)
        fit(trainer, module, data)
        accuracy({"": model}, data.val_dataloader(), config.data.classes, device_of(config))
        return StepMemory.of(trainer, model, recipe, data.images)

    def explained(self, error: Exception) -> MmpError:
        """Return the error as one line that names the setting that is its reason."""
        reason = first_line(error.__cause__ or error)
        for key, value, trial in self._neighbours():
            if trial.failure() is None:
                now = _value(self.config, key)
                return MmpError(f"{key}={now}: no training step is possible with it ({reason}); {key}={value} works")
        if isinstance(error, MmpError):
            return error
        return MmpError(
            f"{self.section}: a training step of {self.config.model.setting} fails ({reason}); change the "
            f"settings of {self.section}, trainer or model.kwargs"
        )

    @property
    def _alone(self) -> TrainConfig:
        """The configuration with one device, all batches, no progress bar and no compilation, which takes a minute."""
        trainer = replace(
            self.config.trainer,
            devices=1,
            limit_train_batches=None,
            limit_val_batches=None,
            enable_progress_bar=False,
            compile=False,
        )
        return replace(self.config, trainer=trainer)

    def _callbacks(self, model: nn.Module) -> list[pl.Callback]:
        """Return the callbacks of the training. Callbacks of the user are left out: they may have effects elsewhere."""
        if self.section == "dense" and hasattr(self.config, "finetune"):
            return []  # pruning jobs use them in fine-tuning only
        pruned = self.section == "finetune"
        nodes = {
            key: {name: value for name, value in node.items() if name != "dirpath"} if node else None
            for key, node in self.config.callbacks.items()
        }
        built = build_callbacks(replace(self._alone, callbacks=nodes), self.folder).values()
        kept = [c for c in built if source_digest(type(c).__module__) is None and is_monitored_by(c, pruned)]
        return [*(self.masking(model) if pruned else ()), *kept]

    def _neighbours(self) -> Iterator[tuple[str, str, Trial]]:
        """Yield the trials that differ in one setting: its key, its value there, and the trial."""
        changes: list[tuple[str, str, Any]] = [(self.section, key, value) for key, value in _OF_RECIPE.items()]
        changes += [("trainer", key, value) for key, value in _OF_TRAINER.items()]
        changes += [("data", key, value) for key, value in _OF_DATA.items()]
        for section, key, value in changes:
            part = getattr(self.config, section)
            if getattr(part, key, value) != value:
                config = replace(self.config, **{section: replace(part, **{key: value})})
                yield f"{section}.{key}", "null" if value is None else str(value).lower(), replace(self, config=config)
        for key, node in self.config.callbacks.items():
            if node:
                config = replace(self.config, callbacks={**self.config.callbacks, key: None})
                yield f"callbacks.{key}", "null", replace(self, config=config)


class _StopAfterOneEpoch(pl.Callback):
    """Ends a training after its first epoch, so that schedules are made for the configured number."""

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = True


class _RandomImages:
    """The data of a trial: a training batch of two images (of one, if batches have one), and one to validate."""

    def __init__(self, config: TrainConfig) -> None:
        data = config.data
        self._count, self._classes = min(2, data.batch_size), data.classes
        self._shape = (data.channels, data.image_size or 1, data.image_size or 1)

    @cached_property
    def images(self) -> Tensor:
        """The images that are trained on."""
        return torch.randn(self._count, *self._shape)

    def train_dataloader(self, ranks: int, device: torch.device) -> EpochLoader:  # noqa: ARG002 (one batch)
        assert ranks == 1
        images = TensorDataset(self.images, torch.arange(self._count) % self._classes)
        return EpochLoader(images, self._count, EpochShuffle(self._count, seed=0))

    def val_dataloader(self, device: torch.device | None = None) -> DataLoader[Any]:  # noqa: ARG002
        return DataLoader(TensorDataset(self.images[:1], torch.zeros(1, dtype=torch.long)))


def _value(config: TrainConfig, key: str) -> Any:
    section, name = key.split(".")
    part = getattr(config, section)
    return part[name]["_target_"] if isinstance(part, dict) else getattr(part, name)
