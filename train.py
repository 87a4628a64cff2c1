"""A dense model from a configuration: ``python train.py model=cnn data=digits``."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from mmp.build import build_callbacks, build_loggers, build_trainer, check
from mmp.cli import command
from mmp.config import TrainConfig, digest, identity, register, run_name, validate
from mmp.data import ImageData
from mmp.files import save_tensors, write_text
from mmp.models import Classifier, accuracy, build_model, load_weights, require_finite
from mmp.store import CONFIG, WEIGHTS, RunFolder, Stopwatch, cached_tensors, versions

log = logging.getLogger(__name__)
register()

# Lightning's remarks on hardware and its own internals would drown the one line that a job of a sweep prints.
for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec")
warnings.filterwarnings("ignore", message=".*does not have many workers")
warnings.filterwarnings("ignore", message=".*exists and is not empty")
warnings.filterwarnings("ignore", message="The number of training batches")


def device_of(config: TrainConfig) -> torch.device:
    """Return the device that a run scores and measures on: always exactly one."""
    gpu = config.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def dense_model(
    config: TrainConfig,
    data: ImageData,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> tuple[nn.Module, bool]:
    """Return the trained dense model: from ``model.checkpoint``, from the cache, or trained now and cached.

    Args:
        config: Model, data, recipe and seed; together they name the cache entry.
        data: The data set that ``config`` describes.
        callbacks: Further Lightning callbacks for the training.
        loggers: Where the training is logged.

    Returns:
        The model, on the CPU, and whether nothing had to be trained.

    Raises:
        MmpError: on an unreadable checkpoint, a checkpoint of another architecture, or diverged training.
    """
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model = build_model(config.model)
    if config.model.checkpoint:
        load_weights(model, Path(config.model.checkpoint))
        return model, True
    settings = identity(config)
    decisive = [settings[key] for key in ("model", "data", "dense", "trainer", "seed")]
    key = digest([*decisive, data.fingerprint])[:16]
    path = Path(config.paths.cache) / "dense" / f"{config.model.label or config.model.name}-{key}.safetensors"
    weights, cached = cached_tensors(path, lambda: _train(model, config, data, callbacks, loggers))
    model.load_state_dict(weights)
    log.info("dense model %s: %s", "read from the cache" if cached else "trained", path)
    return model, cached


def _train(
    model: nn.Module,
    config: TrainConfig,
    data: ImageData,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Logger],
) -> Mapping[str, Tensor]:
    with tempfile.TemporaryDirectory() as scratch:
        best = ModelCheckpoint(scratch, filename="best", monitor="val/accuracy", mode="max", save_weights_only=True)
        module = Classifier(model, config.dense, config.model.num_classes)
        trainer = build_trainer(config, config.dense.epochs, [best, *callbacks], loggers, Path(scratch))
        trainer.fit(module, train_dataloaders=data.train_dataloader(), val_dataloaders=data.val_dataloader())
        module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    require_finite(model, "training")
    return model.state_dict()


def train(config: TrainConfig, run: RunFolder) -> dict[str, Any]:
    """Train (or fetch) the dense model of a configuration, measure it on test data once, and save it.

    Args:
        config: What to train.
        run: Where ``model.safetensors`` and ``result.json`` go.

    Returns:
        What ``result.json`` holds.
    """
    watch = Stopwatch()
    check(config, run.path)
    data = ImageData(config.data, config.seed)
    loggers = build_loggers(config, run.path, run.head["run_name"], tags=["dense"])
    exit_code = 1
    try:
        for logger in loggers:
            logger.log_hyperparams(identity(config))
        with watch("dense"):
            model, cached = dense_model(config, data, list(build_callbacks(config, run.path).values()), loggers)
        device = device_of(config)
        validation, _ = accuracy({"dense": model}, data.val_dataloader(), config.model.num_classes, device)
        test, samples = accuracy({"dense": model}, data.test_dataloader(), config.model.num_classes, device)
        model.cpu()
        save_tensors(run.path / WEIGHTS, model.state_dict())
        result = {
            "kind": "dense",
            "parameters": sum(p.numel() for p in model.parameters()),
            "accuracy": {"dense": {"validation": validation["dense"], "test": test["dense"]}},
            "samples": {**data.samples, "test": samples},
            "cached": cached,
            "seconds": watch.summary(),
            "versions": versions(),
        }
        run.write("completed", **result)
        for logger in loggers:
            logger.log_summary({"accuracy": test["dense"], "val_accuracy": validation["dense"]})
        exit_code = 0
    finally:
        for logger in loggers:
            logger.finish(exit_code)
    log.info("%s: test accuracy %.2f %% of %d images", run.head["run_name"], 100 * test["dense"], samples)
    log.info("weights and result: %s", run.path)
    return result


def open_run(cfg: DictConfig, config: TrainConfig, **head: Any) -> RunFolder:
    """Create the folder of the current Hydra job, with its resolved configuration.

    Args:
        cfg: What Hydra composed.
        config: The same, validated.
        head: Further entries that open ``result.json``.
    """
    path = Path(HydraConfig.get().runtime.output_dir)
    write_text(path / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    facts = {
        "run_name": run_name(cfg),
        "identity": digest(identity(cfg)),
        "model": config.model.label or config.model.name,
        "data": config.data.name,
        "seed": config.seed,
        "overrides": OmegaConf.to_container(HydraConfig.get().overrides.task),
    }
    return RunFolder(path, {**facts, **head})


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """Train one dense model."""
    config = validate(cfg)
    train(config, open_run(cfg, config))


if __name__ == "__main__":
    command(main)
