"""The folder of a run: the files that an attempt writes, and the files that it must not remove."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from mmp.runs import store
from mmp.runs.store import LOGGERS, MASKS, RESULT, STATUS, RunFolder, Stopwatch, versions

HEAD = {"identity": "a", "data_fingerprint": "b"}


def completed(folder: Path) -> RunFolder:
    run = RunFolder(folder, dict(HEAD))
    (folder / MASKS).write_bytes(b"masks")
    run.write_status("running")
    run.complete([MASKS], sparsity=0.5)
    return run


def test_a_completed_run_has_its_numbers_and_a_status(tmp_path: Path) -> None:
    run = completed(tmp_path)
    assert run.completed()
    assert run.result is not None
    assert run.status is not None
    assert (run.result["status"], run.result["sparsity"]) == ("completed", 0.5)
    assert (run.status["status"], run.status["error"]) == ("completed", None)


def test_a_later_attempt_does_not_remove_a_result(tmp_path: Path) -> None:
    before = (completed(tmp_path).path / RESULT).read_bytes()
    for head in ({}, {"identity": "a"}, HEAD):
        RunFolder(tmp_path, dict(head)).fail(ValueError("no such key"), "no such key")
        assert (tmp_path / RESULT).read_bytes() == before
        status = json.loads((tmp_path / STATUS).read_text())
        assert (status["status"], status["error"]["message"]) == ("failed", "no such key")
    assert RunFolder(tmp_path, dict(HEAD)).completed()


def test_other_data_or_settings_are_another_run(tmp_path: Path) -> None:
    completed(tmp_path)
    assert not RunFolder(tmp_path, {**HEAD, "data_fingerprint": "c"}).completed()
    assert not RunFolder(tmp_path, {**HEAD, "identity": "c"}).completed()


def test_a_run_from_a_folder_without_installation_keeps_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = store.version

    def version(package: str) -> str:
        if package == "mmp":
            raise PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(store, "version", version)
    found = versions()
    assert (found["mmp"], found["torch"]) == ("not installed", installed("torch"))


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_run_whose_files_are_damaged_is_not_completed(tmp_path: Path, damage: str) -> None:
    run = completed(tmp_path)
    if damage == "cut":
        (tmp_path / MASKS).write_bytes(b"mas")
    else:
        (tmp_path / MASKS).unlink()
    assert not run.completed()


def test_a_status_names_the_process_and_a_lock_shows_that_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    run = RunFolder(tmp_path, dict(HEAD))
    assert not run.alive()
    with run.lock():
        run.write_status("running")
        assert run.alive()
    assert not run.alive()
    assert run.status is not None
    assert run.status["process"]["slurm"] == "12_3"


def test_a_failure_is_logged_if_its_status_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    RunFolder(tmp_path / "file" / "run").fail(ValueError("diverged"), "diverged")
    assert "the reason of the failure could not be written" in caplog.text


def test_time_spent_in_loggers_does_not_count_in_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    watch = Stopwatch()
    for phase, seconds in (("data", 1.0), (LOGGERS, 20.0), ("scores", 2.0), (LOGGERS, 5.0)):
        with watch(phase):
            now += seconds
    assert watch.summary() == {"data": 1.0, "loggers": 25.0, "scores": 2.0, "total": 3.0}
