"""Slurm's signal before the time limit, arriving before a job, during a job, between two jobs, and after the last."""

from __future__ import annotations

import importlib
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from submitit.helpers import DelayedSubmission
from sweeping import environment
from warm import LIMIT

from callbacks.requeue import SaveInTime
from mmp.runs import slurm


@pytest.fixture
def requeues(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """Make this process a Slurm job, and count how often it is requeued."""
    found: list[None] = []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm, "requeue", lambda: found.append(None))
    before = signal.signal(slurm.SIGNAL, signal.SIG_IGN)
    yield found
    signal.signal(slurm.SIGNAL, before)


class Signals:
    """Sends the signal when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return signal.raise_signal, (slurm.SIGNAL,)


def test_a_signal_between_two_jobs_requeues_the_second(requeues: list[None]) -> None:
    with slurm.requeued_in_time():
        pass
    signal.raise_signal(slurm.SIGNAL)
    assert len(requeues) == 0
    with slurm.requeued_in_time():
        assert len(requeues) == 1
        signal.raise_signal(slurm.SIGNAL)
        assert len(requeues) == 2
    with slurm.requeued_in_time():
        assert len(requeues) == 2


def test_a_signal_during_a_failing_training_requeues_the_next_job(requeues: list[None], tmp_path: Path) -> None:
    trainer: Any = None
    with slurm.requeued_in_time():
        SaveInTime().on_train_start(trainer, trainer)
        signal.raise_signal(slurm.SIGNAL)
    assert len(requeues) == 0
    with slurm.requeued_in_time():
        assert len(requeues) == 1


def test_a_signal_while_a_job_is_unpickled_requeues_that_job(requeues: list[None]) -> None:
    Slurm = importlib.import_module("hydra_plugins.mmp_launchers").Slurm  # noqa: N806 (Hydra may have reloaded it)
    sent = cloudpickle.dumps(DelayedSubmission(Slurm(params=Signals()), Signals()))
    assert isinstance(pickle.loads(sent).function, Slurm)
    assert len(requeues) == 0
    with slurm.requeued_in_time():
        assert len(requeues) == 1


def test_outside_of_slurm_the_signal_handler_is_not_changed(
    requeues: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    with slurm.requeued_in_time():
        assert signal.getsignal(slurm.SIGNAL) == signal.SIG_IGN
    slurm.hold_signal()
    assert signal.getsignal(slurm.SIGNAL) == signal.SIG_IGN


@pytest.mark.parametrize("failed", [False, True])
def test_a_signal_after_the_last_job_does_not_end_the_process(failed: bool) -> None:
    script = f"""
import signal
from mmp.runs import slurm

class Late:
    def __del__(self, send=signal.raise_signal, which=slurm.SIGNAL):
        send(which)
        print("sent")

with slurm.requeued_in_time():
    if {failed}:
        signal.signal(slurm.SIGNAL, slurm.SignalFlag())  # as a training does
signal.raise_signal(slurm.SIGNAL)
late = Late()  # deleted when the interpreter exits
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(SLURM_JOB_ID="7"), check=False, timeout=LIMIT
    )
    assert (done.returncode, done.stdout) == (0, "sent\n"), done.stderr
