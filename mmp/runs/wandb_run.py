"""Weights & Biases: one W&B run per configuration, artifacts with their lineage, and one run that summarises a sweep.

Offline and online runs have the same content; ``wandb sync`` uploads an offline run with its lineage. A server that is
down or slow delays a run by a bounded time. Opening falls back to offline after ``init_timeout``, and for ten minutes
the next runs of the folder do not try the server. Closing waits at most ``finish_timeout``.
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

_COLUMNS = ("name", "role", "lo", "hi", "sparsity", "pruned", "total")  # columns of the table of layers
_UNREACHABLE = ".wandb-unreachable"  # a file, last modified at the time of the last failed connection
_RETRY_AFTER = 600.0  # seconds


class WandbRun(WandbLogger):
    """Lightning's W&B logger, with bounded waiting for the server, a table of layers, and artifacts.

    Args:
        save_dir: The folder of the run; W&B creates its own folder in it.
        id: Stable id of the run: repeated or resumed, it stays the same run in W&B.
        name: The run's display name.
        project: The project in W&B.
        entity: User or team in W&B; None is the default of the account.
        group: Name of the sweep.
        job_type: ``prune``, ``dense`` or ``sweep``.
        tags: The tags in W&B.
        offline: Write to disk only, for ``wandb sync``.
        artifacts: Whether to store weights, scores and masks in W&B.
        init_timeout: Seconds to wait for the server before the run goes offline; wandb itself adds at most ten.
        finish_timeout: Seconds that the end of a run waits for uploads; ``wandb sync`` uploads the rest.
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
            summary: Final numbers and names, which W&B's panels compare.
            layers: The entries of ``result.json`` about each layer.
        """
        import wandb

        rows = [[layer[column] for column in _COLUMNS] for layer in layers]
        if rows:
            self.experiment.log({"layers": wandb.Table(columns=["layer", *_COLUMNS[1:]], data=rows)})
        self.experiment.summary.update(dict(summary))

    def log_artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """Log the files that the run uses or has produced; if this fails, only the artifacts are missing.

        Args:
            artifacts: Files that are not moved or changed afterwards.
        """
        try:
            for artifact in artifacts if self._artifacts else ():
                self._keep(artifact)
        except Exception as error:
            self._artifacts = False  # another attempt could take seconds
            log.warning("W&B: artifacts are missing: %s: %s", type(error).__name__, error)

    def _keep(self, file: Artifact) -> None:
        """Declare a file as input or output of the run. It is not copied, and uploaded only if W&B lacks it."""
        import wandb

        name = identifier(file.name)
        artifact = wandb.Artifact(name, file.kind, metadata=dict(file.metadata))
        # The policy "mutable" would first copy every file to the user's home.
        artifact.add_file(str(file.path.resolve()), name=file.path.name, policy="immutable", skip_cache=True)
        if file.made:
            self.experiment.log_artifact(artifact)
        else:
            # use_artifact does the same with a new artifact, but it waits for the server and refuses offline runs.
            self.experiment._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)


def _open(folder: Path, offline: bool, settings: Mapping[str, Any], **identity: Any) -> wandb.Run:
    """Start a run: online if configured and possible, otherwise offline."""
    import wandb

    def begin(mode: Literal["offline"] | None) -> wandb.Run:
        return wandb.init(
            dir=str(folder), mode=mode, resume="allow", reinit="finish_previous",
            settings=wandb.Settings(quiet=True, silent=mode == "offline", **settings), **identity,
        )  # fmt: skip

    if offline:
        return begin("offline")
    marks = [folder / _UNREACHABLE, folder.parent / _UNREACHABLE]  # the folder is a sweep's or, in it, a run's
    if any(mark.is_file() and time.time() - mark.stat().st_mtime < _RETRY_AFTER for mark in marks):
        log.warning("W&B did not answer minutes ago, so this run is written offline; upload it with wandb sync")
        return begin("offline")
    try:
        return begin(None)
    except Exception as error:
        log.warning("W&B does not answer, so this run is written offline; upload it with wandb sync: %s", error)
        with contextlib.suppress(OSError):  # without the file, the next run tries the server again
            marks[1].touch()
        wandb.teardown()  # otherwise the id counts as taken
    return begin("offline")


def identifier(text: str) -> str:
    """Return a text as a valid name in W&B: other characters replaced, and the last 128, which make names unique."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[-128:]
