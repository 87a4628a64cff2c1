"""The folder of a run: what an attempt that fails leaves, and what it must not take away."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmp.store import ERROR, RESULT, RunFolder

HEAD = {"identity": "a", "data_fingerprint": "b"}


@pytest.mark.parametrize("status", ["running", "failed", "completed"])
def test_an_attempt_that_never_read_its_data_takes_nothing_away(status: str, tmp_path: Path) -> None:
    RunFolder(tmp_path, HEAD).write(status)
    before = (tmp_path / RESULT).read_bytes()
    for head in ({}, {"identity": "a"}):
        RunFolder(tmp_path, head).fail(ValueError("no such key"), "no such key")
        assert (tmp_path / RESULT).read_bytes() == before
        assert "no such key" in (tmp_path / ERROR).read_text()
    assert RunFolder(tmp_path, HEAD).resumable() == (status != "completed")


def test_a_failed_attempt_of_the_same_run_says_so_in_the_result(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, HEAD)
    run.write("running")
    run.fail(ValueError("diverged"), "diverged")
    assert run.result is not None
    assert (run.result["status"], run.result["error"]["message"]) == ("failed", "diverged")
    assert run.resumable()


def test_a_first_attempt_that_fails_at_once_has_a_result(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.fail(ValueError("no such key"), "no such key")
    assert run.result is not None
    assert run.result["status"] == "failed"
    run.write("running")
    assert not (tmp_path / ERROR).exists()


def test_other_data_or_settings_are_another_run(tmp_path: Path) -> None:
    RunFolder(tmp_path, HEAD).write("running")
    assert not RunFolder(tmp_path, {**HEAD, "data_fingerprint": "c"}).resumable()
    assert not RunFolder(tmp_path, {**HEAD, "identity": "c"}).resumable()
