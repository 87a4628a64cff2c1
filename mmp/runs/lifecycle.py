"""One attempt at a run: lock its folder, record its settings at the start, and record how it ended, also on failure."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mmp.config.command import printable_output, quiet
from mmp.config.explain import explain
from mmp.config.identity import digest, identity, run_name, settings_of
from mmp.config.interruption import Interrupted
from mmp.config.schema import TrainConfig
from mmp.config.source_code import source_digest
from mmp.config.validate import validate
from mmp.config.yaml_text import yaml_text
from mmp.errors import MmpError
from mmp.files import write_text
from mmp.runs.devices import gpu_slot
from mmp.runs.memory import keep_freed_memory
from mmp.runs.slurm import requeued_in_time
from mmp.runs.store import CONFIG, JOINT_STATE, RunFolder
from mmp.runs.terminal import is_shown
from mmp.runs.threads import own_cores

Config = TypeVar("Config", bound=TrainConfig)


@contextmanager
def attempt(cfg: DictConfig, schema: type[Config]) -> Iterator[tuple[RunFolder, Config]]:
    """Hold exclusive access to the current job's folder in a ``with`` block, and write the outcome there at its end.

    Args:
        cfg: The configuration that Hydra composed.
        schema: The class of the validated configuration.

    Yields:
        The run's folder, and the validated configuration.

    Raises:
        MmpError: on an invalid value in the configuration.
    """
    quiet()
    printable_output()  # of a launcher's process, too
    run = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    slot = gpu_slot() if HydraConfig.get().mode == RunMode.MULTIRUN else nullcontext()
    keep_freed_memory()
    with slot, requeued_in_time(), run.lock():
        run.clean_up()
        try:
            config = validate(cfg, schema)
            if config.trainer.enable_progress_bar and is_shown():
                config.trainer.enable_progress_bar = False  # the live display shows the progress of all jobs
            with own_cores(config, config.trainer.devices):
                yield run, config
        except KeyboardInterrupt as error:  # not a failure: the same command resumes the run
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            raise Interrupted.by(error, _where_it_resumes(run, Path(cfg.paths.cache))) from None
        except BaseException as error:
            run.fail(error, explain(error) if isinstance(error, MmpError | OSError) else traceback.format_exc())
            raise
        finally:
            run.progress.remove()


def _where_it_resumes(run: RunFolder, cache: Path) -> str:
    """Return the end of a line that says where the last checkpoint of an interrupted run is."""

    def age(path: Path) -> float:
        return path.stat().st_mtime

    config = run.path / CONFIG
    dense = [path for path in cache.glob("dense/*.training/last.ckpt") if config.is_file() and age(path) >= age(config)]
    own = [*run.path.glob("checkpoints/last.ckpt"), *run.path.glob(f"checkpoints/{JOINT_STATE}")]
    found = [*own, *sorted(dense, key=age, reverse=True)]
    return f"; the last checkpoint is {found[0]}" if found else f"; {run.path} has no checkpoint yet"


def record_start(run: RunFolder, cfg: DictConfig, config: TrainConfig, **head: Any) -> None:
    """Write a run's resolved configuration, and set the head of its ``result.json`` and ``status.json``.

    Args:
        run: The run's folder.
        cfg: The configuration that Hydra composed; the run's name and identity are made from it.
        config: The same configuration, validated and complete, as ``config.yaml`` stores it.
        head: Further entries of the head.

    Raises:
        MmpError: if a job of a multirun needs several devices, since parallel jobs would use the same ones.
    """
    source = source_digest(config.model._target_) if config.model._target_ else None
    write_text(run.path / CONFIG, yaml_text(asdict(config)))
    run.head |= {
        "run_name": run_name(cfg),
        "identity": digest(identity(settings_of(cfg))),
        "model": config.model.title,
        "data": config.data.name,
        "seed": config.seed,
        "overrides": OmegaConf.to_container(HydraConfig.get().overrides.task),
        **({"model_source": source} if source else {}),
        **head,
    }
    if HydraConfig.get().mode == RunMode.MULTIRUN and config.trainer.devices > 1:
        raise MmpError(
            f"trainer.devices={config.trainer.devices} in a multirun: give every job one device (omit trainer.devices) "
            "and run as many jobs at once as there are devices (hydra/launcher=joblib, or submitit_slurm with "
            "hydra.launcher.gpus_per_node=1); or run single configurations on several devices, without -m"
        )
    run.write_status("running")
