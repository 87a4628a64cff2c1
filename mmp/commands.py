"""The commands ``prune`` and ``train``: from the command line to one job, or to a sweep of them.

``mmp-prune signal=product strategy=balanced``, in a checkout ``python prune.py signal=product strategy=balanced``
``mmp-prune -m signal=magnitude,gradient,product 'strategy=glob(*)'``
``mmp-prune criterion=lamp budget=0.9``, and every baseline beside a sweep: ``-m match=results/sweeps/sweep``
``mmp-train model=cnn data=digits``

Torch takes seconds to import, so a job imports it after the command line has been checked.
"""

from __future__ import annotations

import functools
import gc
import logging
import sys
from types import ModuleType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mmp.config.choices import FOLDER
from mmp.config.command import command
from mmp.config.matching import with_axes
from mmp.config.registration import register
from mmp.runs.lifecycle import attempt

log = logging.getLogger(__name__)
register()  # here, because worker processes of a launcher import this module, too


def prune() -> None:
    """Run ``mmp-prune``: one pruned model, or with ``-m`` a grid of them."""
    command(_prune)


def train() -> None:
    """Run ``mmp-train``: one dense model."""
    command(_train)


def _prune() -> None:
    sys.argv[1:] = with_axes(sys.argv[1:])  # a multirun that matches a sweep gets its axes
    prune_task()


@hydra.main(version_base="1.3", config_path=str(FOLDER), config_name="prune")
def prune_task(cfg: DictConfig) -> dict[str, Any]:
    """Run one pruning job. In a multirun a failed job leaves its status and lets the others go on."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return run_job(cfg)
    try:
        return run_job(cfg)
    except (Exception, SystemExit) as error:
        log.exception("this run failed; the sweep goes on")
        return {"status": "failed", "error": f"{type(error).__name__}: {error}"}


def run_job(cfg: DictConfig) -> dict[str, Any]:
    """Run one pruning job, and return its status."""
    with attempt(cfg) as (run, config):
        status: dict[str, Any] = _prune_module().run_job(run, config, cfg)
        return status


@functools.cache
def _prune_module() -> ModuleType:
    """Import what runs a job, and exempt all that is imported from garbage collection, once."""
    import mmp.runs.prune

    gc.freeze()  # the collector would look through these objects again and again
    return mmp.runs.prune


@hydra.main(version_base="1.3", config_path=str(FOLDER), config_name="train")
def _train(cfg: DictConfig) -> None:
    """Train one dense model."""
    with attempt(cfg) as (run, config):
        import mmp.runs.train

        mmp.runs.train.run_job(run, config, cfg)
