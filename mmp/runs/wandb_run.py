"""Weights & Biases: a run per configuration, artifacts with their lineage, and one run that sums a sweep up.

Works offline and online alike: what is written offline, lineage included, reaches the server by ``wandb sync``. A
server that is down, slow or refusing costs a bounded time: opening falls back to offline after ``init_timeout``, and
the next runs of the folder do not ask again for a while; closing waits ``finish_timeout`` and no longer.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning.loggers import WandbLogger

from mmp.runs.loggers import Artifact

if TYPE_CHECKING:
    import wandb


log = logging.getLogger(__name__)

_COLUMNS = ("name", "role", "lo", "hi", "sparsity", "pruned", "total")  # of the table of layers
_UNREACHABLE = ".wandb-unreachable"  # its age says when the server was last found so
_ASK_AGAIN = 600.0  # seconds


class WandbRun(WandbLogger):
    """Lightning's logger, with a run that cannot stall a job, a table of layers, and artifacts.

    Args:
        save_dir: The folder of the run; W&B's own is made in it.
        id: Stable id, so that the same run is the same run in W&B, resumed or repeated.
        name: What W&B shows.
        project: W&B's project.
        entity: Its user or team; null is the default of the account.
        group: The sweep.
        job_type: ``prune``, ``dense`` or ``sweep``.
        tags: What W&B filters by.
        offline: Write to disk only, for ``wandb sync``.
        artifacts: Whether to keep weights, scores and masks in W&B.
        init_timeout: Seconds to wait for the server before the run goes offline; wandb adds at most ten of its own.
        finish_timeout: Seconds that the end of a run waits for uploads; what is left by then, ``wandb sync`` uploads.
    """

    def __init__(
        self,
        save_dir: str,
        id: str,  # noqa: A002  (Lightning's name)
        name: str | None = None,
        project: str = "mmp",
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        offline: bool = True,
        artifacts: bool = True,
        init_timeout: float = 20.0,
        finish_timeout: float = 120.0,
    ) -> None:
        settings = {"init_timeout": init_timeout, "login_timeout": init_timeout, "finish_timeout": finish_timeout}
        run = _open(
            Path(save_dir), offline, settings, id=id, name=name, project=project, entity=entity, group=group,
            job_type=job_type, tags=list(tags),
        )  # fmt: skip
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        super().__init__(experiment=run, save_dir=save_dir, project=project, id=id)
        self._artifacts = artifacts

    def log_summary(self, summary: Mapping[str, Any], layers: Iterable[Mapping[str, Any]] = ()) -> None:
        """Log the final numbers of a run, and the table of its layers.

        Args:
            summary: Final numbers and names, by which W&B's panels compare runs.
            layers: What ``result.json`` says of each layer.
        """
        import wandb

        rows = [[layer[column] for column in _COLUMNS] for layer in layers]
        if rows:
            self.experiment.log({"layers": wandb.Table(columns=["layer", *_COLUMNS[1:]], data=rows)})
        self.experiment.summary.update(dict(summary))

    def log_artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """Note what the run was made from, or what it has made; a failure takes no more than the artifacts.

        Args:
            artifacts: Files that stay where they are.
        """
        try:
            for artifact in artifacts if self._artifacts else ():
                self._keep(artifact)
        except Exception as error:
            self._artifacts = False  # every attempt could take seconds
            log.warning("W&B: artifacts are missing: %s: %s", type(error).__name__, error)

    def _keep(self, file: Artifact) -> None:
        """Declare a file as input or output of the run; it is read where it lies, and uploaded if W&B lacks it."""
        import wandb

        name = identifier(file.name)
        artifact = wandb.Artifact(name, file.kind, metadata=dict(file.metadata))
        # The other policy copies every file to the user's home first.
        artifact.add_file(str(file.path.resolve()), name=file.path.name, policy="immutable", skip_cache=True)
        if file.made:
            self.experiment.log_artifact(artifact)
        else:
            # As use_artifact does with a new artifact; but that one refuses to do it offline, and waits for the server.
            self.experiment._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)


def _open(folder: Path, offline: bool, settings: Mapping[str, Any], **identity: Any) -> wandb.Run:
    """Begin a run: online if that is asked for and works, else offline."""
    import wandb

    def begin(mode: Literal["offline"] | None) -> wandb.Run:
        return wandb.init(
            dir=str(folder), mode=mode, resume="allow", reinit="finish_previous",
            settings=wandb.Settings(quiet=True, silent=mode == "offline", **settings), **identity,
        )  # fmt: skip

    if offline:
        return begin("offline")
    marks = [folder / _UNREACHABLE, folder.parent / _UNREACHABLE]  # of a sweep and of a run in it
    if any(mark.is_file() and time.time() - mark.stat().st_mtime < _ASK_AGAIN for mark in marks):
        log.warning("W&B did not answer minutes ago, so this run is written offline, for wandb sync")
        return begin("offline")
    try:
        return begin(None)
    except Exception as error:
        log.warning("W&B does not answer, so this run is written offline, for wandb sync: %s", error)
        with contextlib.suppress(OSError):  # then every run asks
            marks[1].touch()
        wandb.teardown()  # else the id counts as taken
    return begin("offline")


def identifier(text: str) -> str:
    """Return what W&B takes as a name; the end of ours tells them apart."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[-128:]
