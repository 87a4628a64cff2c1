"""Slurm's time limits: a signal that comes before the limit, and a place in the queue again.

A job that is under way goes back into the queue; `callbacks.requeue.SaveInTime` sees to it that a training saves first.
A signal that comes before a job, or between two of one process, is kept for the next; after the last it says nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

SIGNAL = signal.SIGUSR1  # sbatch --signal=USR1@120; submitit uses USR2 for itself
_MOST_REQUEUES = 100  # a limit too short for any progress must not go round for ever


def job_id() -> str | None:
    """Return the Slurm job that this process is part of, as ``squeue`` names it, or None."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def restarts() -> int:
    """Return how often Slurm has run this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def use_own_cores() -> None:
    """Compute on the cores that Slurm has given this job, which not every cluster sees to; OMP_NUM_THREADS wins."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    if cores and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(int(cores))


class SignalFlag:
    """A handler that only remembers that the signal received."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self, *_: Any) -> None:
        """Remember."""
        self.received = True


def hold_signal() -> None:
    """Keep a signal that comes from now on for the next job of this process."""
    if not _may_listen():
        return
    if not isinstance(signal.getsignal(SIGNAL), SignalFlag):  # a training that failed leaves one
        signal.signal(SIGNAL, SignalFlag())
    # At its end Python takes handlers away, and the signal would kill it in the seconds that it then needs to clean up.
    atexit.unregister(_ignore)
    atexit.register(_ignore)


def _ignore() -> None:
    signal.signal(SIGNAL, signal.SIG_IGN)


def _may_listen() -> bool:
    return job_id() is not None and threading.current_thread() is threading.main_thread()


@contextmanager
def requeued_in_time() -> Iterator[None]:
    """Go back into the queue when the signal comes, or has come before; within a training, it is saved first."""
    if not _may_listen():
        yield
        return
    owner = os.getpid()  # processes that are forked from this one have no say

    def leave(*_: Any) -> None:
        if os.getpid() == owner:
            requeue()

    before = signal.signal(SIGNAL, leave)
    try:
        if isinstance(before, SignalFlag) and before.received:
            requeue()
        yield
    finally:
        hold_signal()


def requeue() -> None:
    """Put this job back into the queue, and wait for Slurm to end the process; returns only if Slurm refuses."""
    job = job_id()
    if restarts() >= _MOST_REQUEUES:
        log.error("job %s was requeued %d times and is still not done; give it more time", job, restarts())
        return
    log.warning("job %s is at its time limit and goes back into the queue", job)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, which would cost KillWait seconds
    command = ["scontrol", "requeue", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        log.error("scontrol requeue %s failed (%s); the same sweep started again goes on", job, done.stderr.strip())
        return
    while True:
        time.sleep(1)
