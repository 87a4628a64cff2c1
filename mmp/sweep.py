"""What a launcher must know of a sweep's jobs: which are done already, and which have lost their process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig

from mmp.files import write_json
from mmp.store import SCHEMA_VERSION, STATUS, RunFolder

log = logging.getLogger(__name__)

ENDED = ("completed", "skipped", "failed")


class Sweep:
    """The jobs of one launch.

    Args:
        context: Hydra's, of the launcher.
        config: Hydra's, of the launcher.
        jobs: The overrides of each job.
    """

    def __init__(self, context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]]) -> None:
        self.jobs = [list(job) for job in jobs]
        self._configs = [context.config_loader.load_sweep_config(config, job) for job in self.jobs]
        self.folders = [Path(str(c.hydra.sweep.dir)) / str(c.hydra.sweep.subdir) for c in self._configs]
        self._before = [self._status(index) for index in range(len(self.jobs))]

    def _status(self, index: int) -> str | None:
        path = self.folders[index] / STATUS
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def completed(self, index: int) -> bool:
        """Return whether a job has a whole result of the very same settings, and no later attempt failed.

        Whether its data have changed since, only a job that runs finds out.
        """
        run = RunFolder(self.folders[index])
        result = run.result or {}
        run.head = {key: result.get(key) for key in ("identity", "data_fingerprint")}
        named = str(result.get("identity", "?"))[:8] == self.folders[index].name.rpartition("-")[2]
        failed = (run.status or {}).get("status") == "failed"
        return named and run.completed() and not failed and not self._configs[index].force

    def missing(self) -> list[int]:
        """Return the jobs that are not completed; of the others a line says so."""
        for index, folder in enumerate(self.folders):
            if self.completed(index):
                log.info("%s: already completed, skipped (force=true runs it again)", folder.name)
        return [index for index in range(len(self.jobs)) if not self.completed(index)]

    def ended(self, index: int) -> bool:
        """Return whether a job of this launch has come to an end of its own."""
        status = RunFolder(self.folders[index]).status or {}
        return self._status(index) != self._before[index] and status.get("status") in ENDED

    def begun(self, index: int) -> bool:
        """Return whether a job of this launch has begun."""
        return self._status(index) != self._before[index]

    def lose(self, index: int, reason: str) -> None:
        """Write down that a job's process is gone, unless it had come to its end before.

        Args:
            index: Which job.
            reason: For the user: how it ended, where to look.
        """
        if self.ended(index):
            return
        run = RunFolder(self.folders[index])
        known = run.status if self.begun(index) and run.status else {"overrides": self.jobs[index]}
        error = {"type": "LostJob", "message": reason, "detail": reason}
        write_json(run.path / STATUS, {"schema_version": SCHEMA_VERSION, **known, "status": "failed", "error": error})
        log.error("%s: %s", run.path.name, reason)

    def returned(self, index: int) -> JobReturn:
        """Return what Hydra wants to hear of a job; the truth is in its folder."""
        status = (RunFolder(self.folders[index]).status or {}).get("status", "unknown")
        return JobReturn(
            overrides=self.jobs[index],
            cfg=self._configs[index],
            working_dir=str(self.folders[index]),
            task_name="prune",
            status=JobStatus.COMPLETED,
            _return_value={"status": status},
        )
