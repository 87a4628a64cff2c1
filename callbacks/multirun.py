"""The Hydra callback of a sweep: shows its progress, and writes its report at the end."""

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

# Every worker process imports this module first. Slurm's workers compose configurations, which need the registration.
register()


class SweepReport(Callback):
    """Shows the progress of a sweep, and writes its report when the last job has ended.

    The jobs of a multirun do not raise errors, but write their status to their folders. This callback therefore ends
    the process with exit code 1 if a run has failed.

    Args:
        every: Seconds between progress lines if there is no terminal; None for no lines.
    """

    def __init__(self, every: float | None = 60.0) -> None:
        self._every = every
        self._display: Display | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_display": None}  # worker processes get a copy without the display

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Start the display of the sweep's progress."""
        from mmp.sweeps.display import watch
        from mmp.sweeps.jobs import expand

        live = config.trainer.enable_progress_bar is not False
        self._display = watch(Path(config.hydra.sweep.dir), expand(config), live, self._every)

    def stop(self) -> None:
        """Stop the display, if there is one."""
        if self._display:
            self._display.stop()
            self._display = None

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Below a live display, print only warnings of a job; everything is in the job's log file.

        For a failed job the display prints one line, so the job itself prints nothing.
        """
        from mmp.runs.terminal import SHOWN, is_shown

        if not is_shown():
            return
        for handler in logging.getLogger().handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(
                    lambda record: (
                        record.levelno >= logging.WARNING and not record.exc_info and SHOWN not in vars(record)
                    )
                )

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Free the configurations of the job, 0.4 MB each, which Hydra would keep until the sweep ends.

        Hydra callbacks that are listed after this one do not get them.
        """
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write ``report/`` into the sweep folder and print its table."""
        from rich.console import Console

        from mmp.errors import MmpError
        from mmp.report.write import write_report

        self.stop()
        # Hydra turns an Exception of a callback into a warning and exit code 0, but lets SystemExit through.
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
