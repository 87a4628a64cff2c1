"""The W&B run that summarises a sweep: its table, picture and page."""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmp.config.identity import digest
from mmp.config.schema import is_wandb
from mmp.report.results import REPORT
from mmp.report.timings import LATENCY_PICTURE

log = logging.getLogger(__name__)


def log_sweep(config: DictConfig, folder: Path, failed: int) -> None:
    """Log the report of a sweep to a W&B run of its own, if the configuration logs to W&B. Errors become warnings.

    The run's ID depends on the folder only, so that the same sweep updates its run.

    Args:
        config: The configuration of the multirun.
        folder: The sweep's folder, with its report written.
        failed: Number of failed runs.
    """
    for node in config.logger.values():
        if not is_wandb(node):
            continue
        try:
            arguments: Any = OmegaConf.to_container(node, resolve=True)
            _log_sweep(arguments, {"overrides": list(config.hydra.overrides.task)}, folder, failed)
        except Exception as error:
            log.warning("W&B: the sweep has no summary run: %s: %s", type(error).__name__, error)


def _log_sweep(node: Mapping[str, Any], settings: Mapping[str, Any], folder: Path, failed: int) -> None:
    import wandb

    from mmp.runs.wandb_run import WandbRun, identifier

    arguments = {key: value for key, value in node.items() if key != "_target_"}
    group = arguments.get("group") or folder.name
    key = identifier(f"sweep-{group}-{digest(str(folder.resolve()))[:8]}")
    earlier = list(folder.glob(f"wandb/offline-run-*-{key}"))
    arguments |= {"save_dir": str(folder), "id": key, "name": f"{group}/report", "job_type": "sweep", "tags": ["sweep"]}
    run = WandbRun(**arguments).experiment
    exit_code = 1
    try:
        run.config.update(dict(settings), allow_val_change=True)
        report = folder / REPORT
        columns, rows = _read_table(report / "results.csv")
        content: dict[str, Any] = {"results": wandb.Table(columns=columns, data=rows, allow_mixed_types=True)}
        for name in ("pareto.png", LATENCY_PICTURE):  # missing if all runs failed, or no latency was measured
            if (picture := report / name).is_file():
                content[picture.stem] = wandb.Image(str(picture))
        run.log({**content, "report": wandb.Html(str(report / "index.html"))})
        run.summary.update({"runs": len(rows), "failed": failed})
        exit_code = 1 if failed else 0
    finally:
        run.finish(exit_code=exit_code)
    for path in earlier:  # the new run contains everything that they do
        shutil.rmtree(path, ignore_errors=True)


def _read_table(path: Path) -> tuple[list[str | int], list[list[Any]]]:
    """Return the columns and rows of a CSV file: numbers as int or float, empty cells as None."""
    with path.open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    return [*columns], [[_value(cell) for cell in row] for row in rows]


def _value(cell: str) -> str | float | None:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell or None
