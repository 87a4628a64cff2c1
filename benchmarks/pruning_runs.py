"""Single runs with the code of ``prune.py``, for benchmarks that measure many of them in one process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from mmp.config.choices import FOLDER
from mmp.config.registration import register
from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.data.module import ImageData
from mmp.models.networks import fill_input
from mmp.runs.job import PruneJob
from mmp.runs.prune import prune
from mmp.runs.store import RunFolder, Stopwatch


def configured(settings: Iterable[str]) -> PruneConfig:
    """Return the configuration of a command line with these settings."""
    register()
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        config = validate(compose("prune", list(settings)), PruneConfig)
    fill_input(config)
    return config


def result_of(settings: Iterable[str], data: ImageData) -> dict[str, Any]:
    """Return the ``result.json`` of a run with these settings, whose folder is not kept.

    Args:
        settings: The settings of its command line.
        data: Its data, read before.
    """
    with tempfile.TemporaryDirectory() as scratch:
        config, watch = configured(settings), Stopwatch()
        folder = RunFolder(Path(scratch), {"run_name": "benchmark"})
        return prune(PruneJob.of(config, folder.path), data, folder, watch)
