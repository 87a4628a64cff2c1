"""The dense model from which pruning starts: loaded from a checkpoint or the cache, or trained."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytorch_lightning as pl
import timm
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from mmp.cache import cached_tensors
from mmp.config.identity import OF_DENSE, digest, identity, settings_of
from mmp.config.schema import TrainConfig
from mmp.config.source_code import own_source_digest
from mmp.data.module import ImageData
from mmp.files import locked
from mmp.models.networks import build_model
from mmp.models.weights import load_weights, require_finite
from mmp.tensors import tensors_digest
from mmp.training.channels_last import put_channels_last
from mmp.training.checkpoints import LAST, BestCheckpoint, last_checkpoint
from mmp.training.classifier import Classifier
from mmp.training.trainer import build_trainer, fit

log = logging.getLogger(__name__)


def dense_model(
    config: TrainConfig,
    data: ImageData,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
    observers: Sequence[pl.Callback] = (),
) -> tuple[nn.Module, bool]:
    """Return the dense model: from ``model.checkpoint``, from the cache, or trained now and cached.

    Args:
        config: The run's configuration; model, data, recipe and seed, and callbacks if given, decide the cache entry.
        data: The data set of the configuration.
        callbacks: Further Lightning callbacks for the training.
        loggers: Loggers for the metrics of the training.
        observers: Lightning callbacks that do not change the training, and so do not count for the cache.

    Returns:
        The model, on the CPU, and whether it was loaded instead of trained.

    Raises:
        MmpError: on an unreadable checkpoint, a checkpoint of another architecture, or diverged training.
    """
    _, path = dense_file(config, data, callbacks)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model = put_channels_last(build_model(config.model), config)
    if config.model.checkpoint:
        load_weights(model, path, key="model.checkpoint", weights_key=config.model.weights_key)
        return model, True
    # The name hashes everything that decides the training, and only the holder of the cache's lock uses the folder.
    unfinished = path.with_suffix(".training")
    called = [*callbacks, *observers]
    weights, cached = cached_tensors(path, lambda: _train(model, config, data, called, loggers, unfinished))
    if unfinished.exists():
        with locked(Path(f"{path}.lock"), str(path)):
            shutil.rmtree(unfinished, ignore_errors=True)
    model.load_state_dict(weights)
    log.info("dense model %s: %s", "read from the cache" if cached else "trained", path)
    return model, cached


def dense_file(config: TrainConfig, data: ImageData, callbacks: Sequence[pl.Callback] = ()) -> tuple[str, Path]:
    """Return a name that is unique to the dense model of a configuration, and the file of its weights.

    Args:
        config: The run's configuration; model, data, recipe and seed, and callbacks if given, decide the name.
        data: The data set of the configuration.
        callbacks: Further Lightning callbacks for the training.
    """
    settings, title = identity(settings_of(config)), config.model.title
    if config.model.checkpoint:
        taken, key = settings["model"]["checkpoint"], config.model.weights_key
        return f"{title}-{(digest([taken, key]) if key else taken)[:16]}", Path(config.model.checkpoint)
    decisive = [settings[key] for key in OF_DENSE]
    key = digest([*decisive, settings["callbacks"] if callbacks else {}, data.fingerprint])[:16]
    name = f"{title}-{key}"
    return name, Path(config.paths.cache) / "dense" / f"{name}.safetensors"


def accuracy_file(config: TrainConfig, model: nn.Module, data: ImageData) -> Path:
    """Return the cache file of a dense model's accuracies.

    Its name hashes everything that decides them, also the code that reads and evaluates: a run compares the accuracies
    in it with those of its own models, which it measures with the current code.
    """
    settings = identity(settings_of(config))
    decisive = [tensors_digest(model.state_dict()), settings["model"], settings["data"], config.seed, data.fingerprint]
    decisive += [own_source_digest("data", "models", "training/evaluation.py"), torch.__version__, timm.__version__]
    name = f"{config.model.title}-{digest(decisive)[:16]}.safetensors"
    return Path(config.paths.cache) / "accuracy" / name


def _train(
    model: nn.Module,
    config: TrainConfig,
    data: ImageData,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Logger],
    folder: Path,
) -> Mapping[str, Tensor]:
    """Train the model, resuming from the checkpoints of an interrupted process in a folder, and return its weights."""
    best = BestCheckpoint(
        folder, "best", "val/accuracy", mode="max", save_weights_only=True, enable_version_counter=False
    )
    last = ModelCheckpoint(folder, Path(LAST).stem, enable_version_counter=False)
    compiles = config.trainer.compile
    module = Classifier(model, config.dense, config.data.classes, seed=config.seed, compiles=compiles)
    trainer = build_trainer(config, config.dense.epochs, [best, last, *callbacks], loggers, folder)
    fit(trainer, module, data, last_checkpoint(folder))
    module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    require_finite(model, "training")
    return model.state_dict()
