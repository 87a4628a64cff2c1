"""Commands of the checkout, each in a new process with one thread."""

from __future__ import annotations

import os
import subprocess
import sys

from places import ROOT
from warm import LIMIT

QUICK = ["finetune.epochs=1", "dense.epochs=2", "trainer.enable_progress_bar=false"]


def command(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENT...`` in the checkout; with ``check``, assert that it succeeds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=LIMIT,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done
