"""The jobs of a sweep, for launchers: which are completed, which have ended, and which have lost their process."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from mmp.config.identity import OF_DENSE, digest
from mmp.config.validate import validate
from mmp.errors import MmpError
from mmp.files import write_json
from mmp.runs.store import SCHEMA_VERSION, STATUS, RunFolder
from mmp.sweeps.progress import ENDED

log = logging.getLogger(__name__)


def expand(config: DictConfig) -> list[list[str]] | None:
    """Return the overrides of each job that a multirun will launch, split by its own sweeper.

    Args:
        config: The configuration that Hydra composed for the multirun.

    Returns:
        A list of overrides per job; None if the sweeper chooses its jobs while it runs, or if the command line is
        invalid.
    """
    split = getattr(get_class(config.hydra.sweeper._target_), "split_arguments", None)  # of Hydra's BasicSweeper
    if split is None:
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    given: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    try:
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (jobs,) = split(parser.parse_overrides([*params, *given]), None)
    except HydraException:
        return None
    return jobs


class Sweep:
    """The jobs of one launch.

    Args:
        context: Hydra's context, which the launcher has.
        config: The launcher's configuration.
        jobs: The overrides of each job.
        first: The number of the first job.

    Attributes:
        jobs: The overrides of each job.
        configs: The composed configuration of each job.
        folders: The folder of each job.
    """

    def __init__(
        self, context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], first: int = 0
    ) -> None:
        self.jobs = [list(job) for job in jobs]
        self.configs = [context.config_loader.load_sweep_config(config, job) for job in self.jobs]
        for number, cfg in enumerate(self.configs, first):
            with open_dict(cfg.hydra.job):
                cfg.hydra.job.num, cfg.hydra.job.id = number, f"{cfg.hydra.job.name}_{number}"
        self.folders = [Path(str(c.hydra.sweep.dir)) / str(c.hydra.sweep.subdir) for c in self.configs]
        self._before = [self._status(index) for index in range(len(self.jobs))]
        self._fingerprints: dict[str, str | None] = {}

    def _status(self, index: int) -> str | None:
        path = self.folders[index] / STATUS
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    def _fingerprint(self, index: int) -> str | None:
        """Return the fingerprint of a job's data as it is now, or None if this machine cannot read the data."""
        from mmp.data.module import ImageData  # imports torch, which a first launch does not need
        from mmp.models.networks import fill_input

        composed = copy.deepcopy(self.configs[index])
        with read_write(composed), open_dict(composed):
            composed.pop("hydra")
        try:
            config = validate(composed)
            fill_input(config)
            key = digest(asdict(config.data))
            if key not in self._fingerprints:
                self._fingerprints[key] = ImageData(config.data, config.seed, Path(config.paths.cache)).fingerprint
        except (MmpError, OmegaConfBaseException, OSError):
            return None  # the job itself will report the error
        return self._fingerprints[key]

    def completed(self, index: int) -> bool:
        """Return whether a job has a complete result of the same settings and data, and no later attempt has failed.

        If this machine cannot read the data, the data count as the same.
        """
        run = RunFolder(self.folders[index])
        result, status = run.result or {}, (run.status or {}).get("status")
        run.head = {"identity": result.get("identity"), "data_fingerprint": result.get("data_fingerprint")}
        named = str(run.head["identity"])[:8] == self.folders[index].name.rpartition("-")[2]
        if not named or status not in ("completed", "skipped") or self.configs[index].force or not run.completed():
            return False
        return self._fingerprint(index) in (None, run.head["data_fingerprint"])

    def _dense(self, index: int) -> str:
        """Return a hash of the settings that decide a job's dense model."""
        chosen = OmegaConf.masked_copy(self.configs[index], [*OF_DENSE])
        return digest(OmegaConf.to_container(chosen, resolve=False))

    def missing(self) -> list[int]:
        """Return the jobs to run, and mark the completed ones as skipped.

        For each dense model, the first job that needs it comes first, so that parallel workers train different dense
        models instead of waiting for the same one.
        """
        missing = []
        for index, folder in enumerate(self.folders):
            if not self.completed(index):
                missing.append(index)
                continue
            log.info("%s: already completed, skipped (force=true runs it again)", folder.name)
            status = {**(RunFolder(folder).status or {}), "status": "skipped", "overrides": self.jobs[index]}
            with contextlib.suppress(MmpError):  # a full disk does not make the result incomplete
                write_json(folder / STATUS, status)
        first: dict[str, int] = {}
        for index in missing:
            first.setdefault(self._dense(index), index)
        leading = set(first.values())
        return [*first.values(), *(index for index in missing if index not in leading)]

    def ended(self, index: int) -> bool:
        """Return whether a job of this launch has recorded its end itself."""
        status = RunFolder(self.folders[index]).status or {}
        return self._status(index) != self._before[index] and status.get("status") in ENDED

    def begun(self, index: int) -> bool:
        """Return whether a job of this launch has started."""
        return self._status(index) != self._before[index]

    def mark_lost(self, index: int, reason: str) -> None:
        """Mark a job as failed because its process is gone, unless the job had ended before.

        Args:
            index: The index of the job.
            reason: How the process ended and where to find its output, for the user.
        """
        if self.ended(index):
            return
        run = RunFolder(self.folders[index])
        known = run.status if self.begun(index) and run.status else {"overrides": self.jobs[index]}
        error = {"type": "LostJob", "message": reason, "detail": reason}
        write_json(run.path / STATUS, {"schema_version": SCHEMA_VERSION, **known, "status": "failed", "error": error})
        log.error("%s: %s", run.path.name, reason)

    def job_return(self, index: int) -> JobReturn:
        """Return the JobReturn that Hydra expects. The real status is in the job's ``status.json``."""
        status = (RunFolder(self.folders[index]).status or {}).get("status", "unknown")
        return JobReturn(
            overrides=self.jobs[index],
            cfg=self.configs[index],
            working_dir=str(self.folders[index]),
            task_name=str(self.configs[index].hydra.job.name),
            status=JobStatus.COMPLETED,
            _return_value={"status": status},
        )
