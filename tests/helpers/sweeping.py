"""Sweeps in new processes, for tests that check the files and the output of sweeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import warm
from places import ROOT

QUICK = ["finetune.epochs=1", "dense.epochs=1", "logger=none", "trainer.enable_progress_bar=false"]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a sweep: this one, with a single thread, and the helpers of tests importable."""
    path = f"{ROOT / 'tests' / 'helpers'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": path, **more}


def arguments(results: Path, *overrides: str) -> list[str]:
    """Return the command line of a quick ``prune.py -m``."""
    return [sys.executable, "prune.py", "-m", f"paths.results={results}", *QUICK, *overrides]


def sweep(results: Path, *overrides: str, fresh: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``prune.py -m`` to its end, in a forked process or, with ``fresh``, in a new one."""
    command = arguments(results, *overrides)
    if not fresh:
        return warm.run(command[1:], environment(**more))
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment(**more), check=False, timeout=warm.LIMIT
    )


def statuses(results: Path) -> dict[str, dict[str, Any]]:
    """Return the ``status.json`` of every run of a sweep, by signal and strategy."""
    found = {}
    for path in results.glob("sweeps/sweep/*/status.json"):
        content = json.loads(path.read_text())
        name = f"{content['signal']}/{content['strategy']}" if "strategy" in content else path.parent.name
        found[name] = content
    return found
