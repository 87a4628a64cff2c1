"""Commands of the checkout, each in a process of its own with one thread."""

from __future__ import annotations

import os
import subprocess
import sys

import warm
from places import ROOT

QUICK = ["finetune.epochs=1", "dense.epochs=2", "trainer.enable_progress_bar=false"]


def command(*arguments: str, check: bool = True, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENT...`` in the checkout, in a forked process or, with ``fresh``, in a new one.

    With ``check``, assert that it succeeds.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if fresh:
        line = [sys.executable, *arguments]
        done = subprocess.run(
            line, cwd=ROOT, capture_output=True, text=True, env=environment, check=False, timeout=warm.LIMIT
        )
    else:
        done = warm.run(arguments, environment)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done
