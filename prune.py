"""One pruned model from a configuration; with ``-m``, a grid of them.

``python prune.py signal=product strategy=balanced``
``python prune.py -m signal=magnitude,gradient,product 'strategy=glob(*)'``
``python prune.py criterion=lamp budget=0.9``, and every baseline beside a sweep: ``-m match=results/sweeps/sweep``
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

from mmp.attempt import attempt
from mmp.cli import command
from mmp.conf import FOLDER
from mmp.config import register
from mmp.match import with_axes

log = logging.getLogger(__name__)
register()


def run_job(cfg: DictConfig) -> dict[str, Any]:
    """Run one job, and return its status."""
    with attempt(cfg) as (run, config):
        status: dict[str, Any] = _prune_job().run_job(run, config, cfg)
        return status


@functools.cache
def _prune_job() -> ModuleType:
    """Import what runs a job, and exempt all that is imported from garbage collection, once.

    Torch takes seconds, which a mistake on the command line does not wait for.
    """
    from mmp import prune_job

    gc.freeze()  # the collector would look through it again and again
    return prune_job


@hydra.main(version_base="1.3", config_path=str(FOLDER), config_name="prune")
def main(cfg: DictConfig) -> dict[str, Any]:
    """Run one job. In a multirun a failed job leaves its status and lets the others go on."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return run_job(cfg)
    try:
        return run_job(cfg)
    except (Exception, SystemExit) as error:
        log.exception("this run failed; the sweep goes on")
        return {"status": "failed", "error": f"{type(error).__name__}: {error}"}


def run() -> None:
    """Run the command line; a multirun that matches a sweep gets its axes."""
    sys.argv[1:] = with_axes(sys.argv[1:])
    main()


if __name__ == "__main__":
    import prune as by_name  # what worker processes of a launcher import, too

    command(by_name.run)
