"""Sweeps as a user starts them, in processes of their own, for tests that judge them by what they leave."""

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
    """Return this process's environment, with one thread each and the callbacks of tests."""
    path = f"{ROOT / 'tests' / 'helpers'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": path, **more}


def arguments(results: Path, *overrides: str) -> list[str]:
    """Return a command line of ``prune.py -m``."""
    return [sys.executable, "prune.py", "-m", f"paths.results={results}", *QUICK, *overrides]


def sweep(results: Path, *overrides: str, fresh: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``prune.py -m`` to its end, in a process that imports everything itself if it is to be a fresh one."""
    command = arguments(results, *overrides)
    if not fresh:
        return warm.run(command[1:], environment(**more))
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment(**more), check=False, timeout=warm.LIMIT
    )


def statuses(results: Path) -> dict[str, dict[str, Any]]:
    """Return ``status.json`` of every run of a sweep, by signal and strategy."""
    found = {}
    for path in results.glob("sweeps/sweep/*/status.json"):
        content = json.loads(path.read_text())
        name = f"{content['signal']}/{content['strategy']}" if "strategy" in content else path.parent.name
        found[name] = content
    return found
