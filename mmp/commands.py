"""The commands: ``mmp-prune`` and ``mmp-train``, which run one configuration or a sweep of many, and the others.

- One pruned model: ``mmp-prune signal=product strategy=balanced``
- A sweep: ``mmp-prune -m signal=magnitude,gradient,product 'strategy=glob(*)'``
- A baseline: ``mmp-prune criterion=lamp budget=0.9``
- All baselines at the sparsities of a sweep: ``mmp-prune -m match=results/sweeps/sweep``
- A dense model: ``mmp-train model=cnn data=digits``
- ``mmp-plan`` and ``mmp-export`` are ``python -m mmp.plan`` and ``python -m mmp.export``.

In a checkout, ``python prune.py`` and ``python train.py`` are the same commands.

Importing torch takes seconds, so a job imports it only after the command line has been checked.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mmp.config.choices import FOLDER
from mmp.config.command import command
from mmp.config.explain import explain
from mmp.config.interruption import Interrupted
from mmp.config.matching import with_axes
from mmp.config.registration import register
from mmp.config.schema import PruneConfig, TrainConfig
from mmp.errors import MmpError
from mmp.files import no_space
from mmp.imports import import_once
from mmp.openmp import bound_spin
from mmp.runs.lifecycle import attempt
from mmp.runs.terminal import SHOWN

log = logging.getLogger(__name__)
IN_THIS_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
IN_WORKERS = "hydra_plugins.mmp_launchers.Workers"  # which ends the sweep if a job returns ``full_disk``
register()  # at import, because worker processes of a launcher import this module, too


def prune() -> None:
    """Run ``mmp-prune``: prune one model or, with ``-m``, run a sweep."""
    bound_spin()
    command(_prune, resumes=True)


def train() -> None:
    """Run ``mmp-train``: train one dense model."""
    bound_spin()
    command(_train, resumes=True)


def plan() -> None:
    """Run ``mmp-plan``: print the plan of a model, or a survey of models."""
    bound_spin()
    import mmp.plan

    mmp.plan.main()


def export() -> int:
    """Run ``mmp-export``: export runs to files for a device."""
    bound_spin()
    from mmp.export.__main__ import main

    return main()


def _prune() -> None:
    sys.argv[1:] = with_axes(sys.argv[1:])  # a multirun with match=... gets the axes of the matched sweep
    prune_task()


@hydra.main(version_base="1.3", config_path=str(FOLDER), config_name="prune")
def prune_task(cfg: DictConfig) -> dict[str, Any]:
    """Run one pruning job. In a multirun, a job that fails returns its status, and the sweep goes on.

    Raises:
        Interrupted: if there is no space left for the files of a multirun's jobs, which run in this process.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return run_job(cfg)
    try:
        return run_job(cfg)
    except (Exception, SystemExit) as error:
        launcher = HydraConfig.get().launcher._target_
        if no_space(error) and launcher == IN_THIS_PROCESS:
            raise Interrupted.by_full_disk(explain(error)) from None
        if no_space(error) and launcher == IN_WORKERS:
            return {"status": "failed", "full_disk": explain(error)}
        if isinstance(error, MmpError) or no_space(error):
            log.error("this run failed; the sweep goes on: %s", explain(error), extra={SHOWN: True})  # noqa: TRY400 (one line)
        else:
            log.exception("this run failed; the sweep goes on")
        return {"status": "failed", "error": f"{type(error).__name__}: {error}"}


def run_job(cfg: DictConfig) -> dict[str, Any]:
    """Run one pruning job, and return its status."""
    with attempt(cfg, PruneConfig) as (run, config):
        status: dict[str, Any] = import_once("mmp.runs.prune").run_job(run, config, cfg)
        return status


@hydra.main(version_base="1.3", config_path=str(FOLDER), config_name="train")
def _train(cfg: DictConfig) -> None:
    """Train one dense model."""
    with attempt(cfg, TrainConfig) as (run, config):
        import_once("mmp.runs.train").run_job(run, config, cfg)
