"""A dense model from a configuration: ``python train.py model=cnn data=digits``."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from callbacks.progress import NoteProgress
from mmp.build import build_callbacks, check, opened_loggers
from mmp.cli import command, explain, quiet
from mmp.conf import FOLDER
from mmp.config import TrainConfig, register
from mmp.data import ImageData
from mmp.dense import dense_file, dense_model, device_of
from mmp.devices import lease_gpu
from mmp.errors import MmpError
from mmp.files import save_tensors, write_text
from mmp.identity import digest, identity, run_name
from mmp.loggers import Artifact
from mmp.models import fill_input
from mmp.slurm import requeued_in_time, use_own_cores
from mmp.store import CONFIG, WEIGHTS, RunFolder, Stopwatch, versions
from mmp.training import accuracy
from mmp.validate import validate

log = logging.getLogger(__name__)
register()
quiet()


def train(config: TrainConfig, run: RunFolder) -> dict[str, Any]:
    """Train (or fetch) the dense model of a configuration, measure it on test data once, and save it.

    Args:
        config: What to train.
        run: Where ``model.safetensors`` and ``result.json`` go.

    Returns:
        What ``result.json`` holds.
    """
    watch = Stopwatch()
    watch.begun = run.notes.begin
    check(config, run.path)
    data = ImageData(config.data, config.seed)
    tags = [run.head["model"], run.head["data"], "dense"]
    with opened_loggers(config, run, "dense", tags, watch) as loggers:
        with watch("dense"):
            callbacks = list(build_callbacks(config, run.path).values())
            model, cached = dense_model(config, data, callbacks, loggers, [NoteProgress(run.notes)])
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
            "cached": cached,
            "seconds": watch.summary(),
            "versions": versions(),
        }
        run.complete([WEIGHTS], **result)
        name, path = dense_file(config, data, callbacks)
        summary = {key: run.head[key] for key in ("model", "data", "seed")}
        summary |= {"accuracy": test["dense"], "val_accuracy": validation["dense"]}
        for logger in loggers:
            logger.log_summary(summary)
            logger.log_artifacts([Artifact(f"dense-{name}", "model", path, metadata=summary)])
    log.info("%s: test accuracy %.2f %% of %d images", run.head["run_name"], 100 * test["dense"], samples)
    log.info("weights and result: %s", run.path)
    return result


@contextmanager
def attempt() -> Iterator[RunFolder]:
    """Have the folder of the current Hydra job for oneself, and leave in it how the attempt ended."""
    run = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        lease_gpu()
    use_own_cores()
    with requeued_in_time(), run.lock():
        run.tidy()
        try:
            yield run
        except BaseException as error:
            run.fail(error, explain(error) if isinstance(error, MmpError | OSError) else traceback.format_exc())
            raise
        finally:
            run.notes.remove()


def introduce(run: RunFolder, cfg: DictConfig, config: TrainConfig, **head: Any) -> None:
    """Write a run's resolved configuration, and what opens its ``result.json`` and ``status.json``.

    Args:
        run: The run.
        cfg: What Hydra composed; it names the run.
        config: The same, validated and complete; it is what ``config.yaml`` holds.
        head: Further entries that open its files.

    Raises:
        MmpError: if a job of a multirun asks for several devices; workers would start processes on the same ones.
    """
    write_text(run.path / CONFIG, OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    run.head |= {
        "run_name": run_name(cfg),
        "identity": digest(identity(cfg)),
        "model": config.model.label or config.model.name,
        "data": config.data.name,
        "seed": config.seed,
        "overrides": OmegaConf.to_container(HydraConfig.get().overrides.task),
        **head,
    }
    if HydraConfig.get().mode == RunMode.MULTIRUN and config.trainer.devices > 1:
        raise MmpError(
            f"trainer.devices={config.trainer.devices} in a multirun: give every job one device (leave trainer.devices "
            "out) and run as many jobs at once as there are devices (hydra/launcher=joblib, or submitit_slurm with "
            "hydra.launcher.gpus_per_node=1); or run single configurations on several devices, without -m"
        )
    run.say("running")


@hydra.main(version_base="1.3", config_path=str(FOLDER), config_name="train")
def main(cfg: DictConfig) -> None:
    """Train one dense model."""
    with attempt() as run:
        config = validate(cfg)
        fill_input(config)
        introduce(run, cfg, config)
        train(config, run)


if __name__ == "__main__":
    import train as by_name  # what worker processes of a launcher import, too

    command(by_name.main)
