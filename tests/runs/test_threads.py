"""Threads and loader processes of a run: together within its cores, and the user's own setting wins."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from commands import QUICK

from mmp.config.schema import TrainConfig
from mmp.machine import Cores
from mmp.runs import threads
from mmp.runs.threads import Division, own_cores


def division(usable: float, wanted: int = 0, processes: int = 1, gpu: bool = False, by_user: int | None = None) -> Any:
    found = Division.of(Cores(usable, 64), wanted, processes, gpu, by_user)
    return found.threads, found.loaders


@pytest.mark.parametrize(
    ("division", "expected"),
    [
        (division(8), (8, 0)),
        (division(1.5), (1, 0)),
        (division(8, wanted=4), (6, 2)),
        (division(2, wanted=4), (2, 0)),
        (division(64, wanted=4), (60, 4)),
        (division(8, wanted=4, gpu=True), (4, 4)),
        (division(2, wanted=4, gpu=True), (1, 1)),
        (division(8, wanted=4, processes=2), (3, 1)),
        (division(8, wanted=4, by_user=6), (6, 2)),
        (division(8, wanted=4, by_user=16), (16, 0)),
    ],
)
def test_cores_are_divided_among_threads_and_loaders(division: tuple[int, int], expected: tuple[int, int]) -> None:
    assert division == expected


def test_no_division_needs_more_cores_than_there_are() -> None:
    for usable, wanted, processes, gpu in itertools.product((1, 2, 3, 7, 16), (0, 1, 4, 99), (1, 2, 3), (False, True)):
        thread_count, loaders = division(usable, wanted, processes, gpu)
        assert thread_count >= 1
        assert processes * (thread_count + loaders) <= max(usable, processes)


@pytest.mark.parametrize(
    ("usable", "wanted", "processes", "line"),
    [
        (8, 0, 1, "8 of 64 cores may be used (quota): 8 threads"),
        (1.5, 0, 1, "1.5 of 64 cores may be used (quota): 1 thread"),
        (8, 4, 2, "8 of 64 cores may be used (quota): 2 processes, each with 3 threads, 1 of 4 data loader workers"),
    ],
)
def test_the_division_is_one_line(usable: float, wanted: int, processes: int, line: str) -> None:
    assert Division.of(Cores(usable, 64, "quota"), wanted, processes, on_gpu=False, threads=None).describe() == line


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainConfig]:
    """A configuration with four data loader workers, in a process of six threads that may use five cores."""
    monkeypatch.setattr(threads, "cores", lambda: Cores(5, 8, "quota"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    configured = TrainConfig()
    configured.trainer.accelerator, configured.data.workers = "cpu", 4
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield configured
    torch.set_num_threads(before)


def test_threads_are_limited_during_a_run(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), own_cores(config):
        assert (torch.get_num_threads(), config.data.workers) == (4, 1)
        assert "OMP_NUM_THREADS" not in os.environ
    assert torch.get_num_threads() == 6
    assert caplog.messages == ["5 of 8 cores may be used (quota): 4 threads, 1 of 4 data loader workers"]


def test_a_run_never_gets_more_threads_than_it_had(config: TrainConfig) -> None:
    torch.set_num_threads(2)  # of the physical cores, for instance
    with own_cores(config):
        assert torch.get_num_threads() == 2


def test_the_number_of_threads_that_the_user_has_set_is_kept(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    with own_cores(config):
        assert (torch.get_num_threads(), config.data.workers) == (6, 0)
        assert os.environ["OMP_NUM_THREADS"] == "6"
    assert os.environ["OMP_NUM_THREADS"] == "6"


def test_processes_of_a_distributed_training_inherit_their_number_of_threads(config: TrainConfig) -> None:
    with own_cores(config, processes=2):
        assert (os.environ["OMP_NUM_THREADS"], config.data.workers) == ("2", 0)
        assert torch.get_num_threads() == 4
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.slow
def test_a_run_says_which_cores_it_uses(tmp_path: Path) -> None:
    places = [f"paths.results={tmp_path}", f"paths.cache={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'run'}"]
    arguments = ["train.py", "model=cnn", "data=digits", "data.workers=3", "trainer.accelerator=cpu", *QUICK[1:]]
    done = warm.run([*arguments, *places], {**os.environ, "OMP_NUM_THREADS": "1", "MMP_CORES": "1"})
    assert done.returncode == 0, done.stderr
    present = os.cpu_count()
    limited = f"1 of {present} cores may be used (MMP_CORES): " if present != 1 else "1 of 1 core may be used: "
    assert f"{limited}1 thread, 0 of 3 data loader workers" in done.stdout + done.stderr
    assert "workers: 0" in (tmp_path / "run" / "config.yaml").read_text()
