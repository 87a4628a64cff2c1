"""One attempt at a run: its folder locked, what it is written down at the start, and how it ended, however it does."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mmp.config.command import explain, quiet
from mmp.config.identity import digest, identity, run_name, settings_of
from mmp.config.schema import TrainConfig
from mmp.config.validate import validate
from mmp.errors import MmpError
from mmp.files import write_text
from mmp.runs.devices import lease_gpu
from mmp.runs.memory import keep_freed_memory
from mmp.runs.slurm import requeued_in_time, use_own_cores
from mmp.runs.store import CONFIG, RunFolder
from mmp.runs.terminal import is_shown


@contextmanager
def attempt(cfg: DictConfig) -> Iterator[tuple[RunFolder, Any]]:
    """Have the folder of the current Hydra job for oneself, and leave in it how the attempt ended.

    Args:
        cfg: What Hydra composed.

    Yields:
        The run, and its configuration, validated.

    Raises:
        MmpError: on a value that is wrong.
    """
    quiet()
    run = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        lease_gpu()
    use_own_cores()
    keep_freed_memory()
    with requeued_in_time(), run.lock():
        run.clean_up()
        try:
            config = validate(cfg)
            if config.trainer.enable_progress_bar and is_shown():
                config.trainer.enable_progress_bar = False  # the live display draws for all jobs
            yield run, config
        except BaseException as error:
            run.fail(error, explain(error) if isinstance(error, MmpError | OSError) else traceback.format_exc())
            raise
        finally:
            run.progress.remove()


def record_start(run: RunFolder, cfg: DictConfig, config: TrainConfig, **head: Any) -> None:
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
        "identity": digest(identity(settings_of(cfg))),
        "model": config.model.title,
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
    run.write_status("running")
