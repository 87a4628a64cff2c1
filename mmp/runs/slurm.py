"""Slurm's time limits: on the signal that Slurm sends before the limit, a job is requeued.

During a training, `callbacks.requeue.SaveInTime` handles the signal and saves a checkpoint first. A signal that arrives
before a job, or between two jobs of one process, is held for the next job. After the last job it is ignored.
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

SIGNAL = signal.SIGUSR1  # sbatch --signal=USR1@120; submitit itself uses USR2
_MOST_REQUEUES = 100  # a time limit that is too short for any progress must not requeue a job forever


def job_id() -> str | None:
    """Return the id of the Slurm job of this process, as ``squeue`` shows it, or None outside of Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def restarts() -> int:
    """Return how often Slurm has restarted this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


class SignalFlag:
    """A signal handler that only records that the signal was received."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self, *_: Any) -> None:
        """Record the signal."""
        self.received = True


def hold_signal() -> None:
    """Hold a signal that arrives from now on for the next job of this process."""
    if not _handles_signal():
        return
    if not isinstance(signal.getsignal(SIGNAL), SignalFlag):  # a failed training has left one
        signal.signal(SIGNAL, SignalFlag())
    # At exit, Python restores the default handlers. The signal would kill the process while it still cleans up.
    atexit.unregister(_ignore)
    atexit.register(_ignore)


def _ignore() -> None:
    signal.signal(SIGNAL, signal.SIG_IGN)


def _handles_signal() -> bool:
    return job_id() is not None and threading.current_thread() is threading.main_thread()


@contextmanager
def requeued_in_time() -> Iterator[None]:
    """Requeue the job when the signal arrives in a ``with`` block, or if it arrived before.

    During a training, `callbacks.requeue.SaveInTime` replaces this handler and saves a checkpoint first.
    """
    if not _handles_signal():
        yield
        return
    owner = os.getpid()  # forked processes inherit the handler, but must not requeue the job

    def requeue_in_owner(*_: Any) -> None:
        if os.getpid() == owner:
            requeue()

    before = signal.signal(SIGNAL, requeue_in_owner)
    try:
        if isinstance(before, SignalFlag) and before.received:
            requeue()
        yield
    finally:
        hold_signal()


def requeue() -> None:
    """Requeue this Slurm job and wait for Slurm to end the process; return only if Slurm refuses."""
    job = job_id()
    if restarts() >= _MOST_REQUEUES:
        log.error("job %s was requeued %d times and is not done; increase its time limit", job, restarts())
        return
    log.warning("job %s has reached its time limit and is requeued", job)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores SIGTERM, so that Slurm would wait KillWait seconds
    command = ["scontrol", "requeue", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        log.error("scontrol requeue %s failed (%s); start the same sweep again to resume", job, done.stderr.strip())
        return
    while True:
        time.sleep(1)
