"""One training of a dense model, from its configuration to its folder. ``train.py`` runs it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from callbacks.progress import WriteProgress
from callbacks.requeue import saving_in_time
from mmp.config.schema import TrainConfig
from mmp.data.module import ImageData
from mmp.models.networks import fill_input
from mmp.runs.lifecycle import record_start
from mmp.runs.loggers import Artifact, opened_loggers
from mmp.runs.store import WEIGHTS, RunFolder, Stopwatch, versions
from mmp.tensors import save_tensors
from mmp.training.dense import dense_file, dense_model
from mmp.training.evaluation import accuracy, device_of
from mmp.training.step_memory import require_memory, steps_left
from mmp.training.trainer import build_callbacks, check_config
from mmp.training.trial import try_training

log = logging.getLogger(__name__)


def train(config: TrainConfig, run: RunFolder) -> dict[str, Any]:
    """Train the dense model of a configuration, or load it from the cache; measure it on the test split, and save it.

    Args:
        config: The validated configuration.
        run: The folder for ``model.safetensors`` and ``result.json``.

    Returns:
        The content of ``result.json``, without its head.
    """
    watch = Stopwatch()
    watch.on_begin = run.progress.begin
    check_config(config, run.path)
    steps = try_training(config)
    data = ImageData(config.data, config.seed, Path(config.paths.cache))
    callbacks = list(build_callbacks(config, run.path).values())
    name, path = dense_file(config, data, callbacks)
    require_memory(config, steps_left(steps, path), data.samples["train"])
    tags = [run.head["model"], run.head["data"], "dense"]
    with opened_loggers(config, run, "dense", tags, watch) as loggers:
        with watch("dense"):
            model, cached = dense_model(
                config, data, callbacks, loggers, [WriteProgress(run.progress), *saving_in_time(config)]
            )
        device = device_of(config)
        validation, _ = accuracy({"dense": model}, data.val_dataloader(), config.data.classes, device)
        test, samples = accuracy({"dense": model}, data.test_dataloader(), config.data.classes, device)
        model.cpu()
        save_tensors(run.path / WEIGHTS, model.state_dict())
        result = {
            "kind": "dense",
            "parameters": sum(p.numel() for p in model.parameters()),
            "accuracy": {"dense": {"validation": validation["dense"], "test": test["dense"]}},
            "samples": {**data.samples, "test": samples},
            "classes": data.class_names and list(data.class_names),
            "cached": cached,
            "seconds": watch.summary(),
            "versions": versions(),
        }
        run.complete([WEIGHTS], **result)
        summary = {key: run.head[key] for key in ("model", "data", "seed")}
        summary |= {"accuracy": test["dense"], "val_accuracy": validation["dense"]}
        for logger in loggers:
            logger.log_summary(summary)
            logger.log_artifacts([Artifact(f"dense-{name}", "model", path, metadata=summary)])
    log.info("%s: test accuracy %.2f %% of %d images", run.head["run_name"], 100 * test["dense"], samples)
    log.info("weights and result: %s", run.path)
    return result


def run_job(run: RunFolder, config: TrainConfig, cfg: DictConfig) -> None:
    """Train the dense model of one configuration.

    Args:
        run: The run's folder.
        config: The validated configuration.
        cfg: The same configuration, as Hydra composed it.
    """
    fill_input(config)
    record_start(run, cfg, config)
    train(config, run)
