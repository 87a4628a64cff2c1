"""The jobs of a sweep as a launcher sees them: which are missing, which have ended, and which are lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from composing import files
from hydra.types import RunMode
from partly import partly_slow

from mmp.runs.store import MASKS, RESULT, STATUS, RunFolder
from mmp.sweeps.jobs import Sweep


@pytest.fixture
def launch(tmp_path: Path) -> Any:
    """Return a function that makes a sweep of jobs as a launcher does."""

    def make(*overrides: str, jobs: Sequence[str] = ("strategy=p30", "strategy=p70")) -> Sweep:
        with files() as loader:
            given = [f"paths.results={tmp_path}", *overrides]
            config = loader.load_configuration("prune", given, run_mode=RunMode.MULTIRUN)
            return Sweep(SimpleNamespace(config_loader=loader), config, [[*given, job] for job in jobs], 5)

    return make


def complete(sweep: Sweep, index: int, **changes: Any) -> Path:
    """Write the files of a completed run."""
    folder = sweep.folders[index]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MASKS).write_bytes(b"masks")
    head = {
        "identity": folder.name.rpartition("-")[2] + 56 * "0",
        "data_fingerprint": sweep._fingerprint(index),
        **changes,
    }
    RunFolder(folder, head).complete([MASKS])
    return folder


@pytest.mark.slow
def test_completed_jobs_are_not_missing(launch: Any) -> None:
    sweep = launch()
    assert sweep.missing() == [0, 1]
    assert sweep._fingerprint(0) is not None
    complete(sweep, 1)
    assert launch().missing() == [0]
    assert launch("force=true").missing() == [0, 1]


@pytest.mark.slow
def test_jobs_that_train_a_dense_model_come_first(launch: Any) -> None:
    sweep = launch(jobs=["seed=0", "seed=0", "seed=1", "seed=0", "model=vit", "seed=1", "dense.epochs=1"])
    assert sweep.missing() == [0, 2, 4, 6, 1, 3, 5]


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", partly_slow(["data", "settings", "files", "attempt", "unfinished"], quick=["files"]))
def test_jobs_with_damaged_or_outdated_results_are_missing(launch: Any, spoilt: str) -> None:
    sweep = launch()
    folder = complete(sweep, 0, **({"data_fingerprint": "other"} if spoilt == "data" else {}))
    if spoilt == "settings":
        content = json.loads((folder / RESULT).read_text())
        (folder / RESULT).write_text(json.dumps({**content, "identity": "0" * 64}))
    if spoilt == "files":
        (folder / MASKS).write_bytes(b"mas")
    if spoilt in ("attempt", "unfinished"):
        RunFolder(folder, {}).write_status("failed" if spoilt == "attempt" else "running")
    assert launch().missing() == [0, 1]


@pytest.mark.slow
def test_unreadable_data_do_not_make_a_completed_job_missing(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    complete(launch(), 0)

    def fail(*_: Any) -> None:
        raise OSError("no such device")

    monkeypatch.setattr("mmp.data.module.ImageData.__init__", fail)
    assert launch().missing() == [1]


@pytest.mark.slow
def test_a_lost_job_is_marked_as_failed_unless_it_had_ended(launch: Any) -> None:
    sweep = launch()
    sweep.mark_lost(0, "its node is gone")
    status = json.loads((sweep.folders[0] / STATUS).read_text())
    assert (status["status"], status["error"]["message"]) == ("failed", "its node is gone")
    assert "strategy=p30" in status["overrides"]
    assert sweep.job_return(0).return_value == {"status": "failed"}
    complete(sweep, 1)
    sweep.mark_lost(1, "its node is gone")
    assert json.loads((sweep.folders[1] / STATUS).read_text())["status"] == "completed"


@pytest.mark.slow
def test_only_this_launch_starts_and_ends_its_jobs(launch: Any) -> None:
    complete(launch(), 0)
    sweep = launch()
    assert not sweep.ended(0)
    assert not sweep.begun(0)
    RunFolder(sweep.folders[0], {}).write_status("running")
    assert sweep.begun(0)
    assert not sweep.ended(0)


@pytest.mark.slow
def test_jobs_are_numbered_as_by_hydra(launch: Any) -> None:
    sweep = launch("hydra.sweep.subdir='${hydra.job.num}'")
    assert [folder.name for folder in sweep.folders] == ["5", "6"]
