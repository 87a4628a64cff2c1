"""The Hydra callback: what happens when a multirun ends."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from mmp.config import register

# A worker process of any launcher reads this module before it composes its job's configuration, and prune.py after.
register()


class SweepReport(Callback):
    """Writes the report of a sweep when its last job has ended.

    Jobs of a multirun do not raise: each leaves its status in its folder. So the sweep ends here, with exit
    code 1 if a run in it failed.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Drop the configurations that Hydra would keep of every job until the sweep ends, 0.4 MB each.

        Hydra callbacks that are listed after this one do not see them.
        """
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write ``report/`` into the sweep folder and show its table."""
        from rich.console import Console

        from mmp.errors import MmpError
        from mmp.report import write_report
        from mmp.wandb_runs import log_sweep

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
        log_sweep(config, folder, len(report.failed))
        if report.failed:
            sys.exit(1)
