"""The Hydra callback: what is shown of a multirun, and what happens when it ends."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from mmp.config.registration import register
from mmp.config.schema import is_wandb

if TYPE_CHECKING:
    from mmp.sweeps.display import Display

# A process of any launcher reads this module before its job, and prune.py after; Slurm's compose configurations.
register()


class SweepReport(Callback):
    """Shows the progress of a sweep, and writes its report when its last job has ended.

    Jobs of a multirun do not raise: each leaves its status in its folder. So the sweep ends here, with exit
    code 1 if a run in it failed.

    Args:
        every: Seconds between the lines that are shown where there is no terminal; None for none of them.
    """

    def __init__(self, every: float | None = 60.0) -> None:
        self._every = every
        self._display: Display | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_display": None}  # jobs in other processes get a copy

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Begin to show the sweep's progress."""
        from mmp.sweeps.display import watch
        from mmp.sweeps.jobs import expand

        live = config.trainer.enable_progress_bar is not False
        self._display = watch(Path(config.hydra.sweep.dir), expand(config), live, self._every)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Leave what a job logs to its file, where its console is a live display; warnings are shown above that.

        So is a line for a job that fails, in place of its traceback.
        """
        from mmp.runs.terminal import is_shown

        if not is_shown():
            return
        for handler in logging.getLogger().handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(lambda record: record.levelno >= logging.WARNING and not record.exc_info)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Drop the configurations that Hydra would keep of every job until the sweep ends, 0.4 MB each.

        Hydra callbacks that are listed after this one do not see them.
        """
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write ``report/`` into the sweep folder and show its table."""
        from rich.console import Console

        from mmp.errors import MmpError
        from mmp.report.write import write_report

        if self._display:
            self._display.stop()
        # Hydra turns exceptions of callbacks into warnings and exit code 0; SystemExit is not an Exception.
        folder = Path(config.hydra.sweep.dir)
        try:
            report = write_report(folder, Console())
        except MmpError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(1)
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        if any(is_wandb(node) for node in config.logger.values()):
            from mmp.report.wandb_summary import log_sweep

            log_sweep(config, folder, len(report.failed))
        if report.failed:
            sys.exit(1)
