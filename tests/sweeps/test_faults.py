"""Faults: after any interruption, the same command gives the results of an uninterrupted sweep."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from resources import needs, skip_without
from sweeping import QUICK, ROOT, arguments, environment, sweep
from warm import LIMIT

from benchmarks.sweeps import killed, outcome_of, outcomes
from mmp.tensors import load_tensors

pytestmark = pytest.mark.slow

THIRTY = ["signal=magnitude,gradient,product", "strategy=glob(*)"]
FEW = ["strategy=p30,p70"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcomes of thirty jobs in one process, without faults."""
    results = tmp_path_factory.mktemp("reference")
    done = sweep(results, *THIRTY)
    assert done.returncode == 0, done.stderr
    found = outcomes(results)
    assert len(found) == 30
    return found


def names(found: dict[str, Any], *parts: str) -> dict[str, Any]:
    """Return the outcomes of the jobs whose names contain one of the parts."""
    return {name: outcome for name, outcome in found.items() if any(part in name for part in parts)}


def test_kills_at_random_times_do_not_change_results(expected: dict[str, Any], tmp_path: Path) -> None:
    draw = random.Random(6)
    command = arguments(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *THIRTY)
    for _ in range(3):
        assert killed(command, tmp_path, draw.uniform(0, 1)) is None
        found = outcomes(tmp_path)
        assert found == {name: expected[name] for name in found}  # every result that exists is right at any time
    assert killed(command, tmp_path, None) == 0
    assert outcomes(tmp_path) == expected


@needs("mount")
def test_a_sweep_on_a_full_disk_fails_clearly_and_can_be_resumed(expected: dict[str, Any], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], check=False, timeout=60)
    if mounted.returncode:
        skip_without("mount", "a tmpfs cannot be mounted here")
    try:
        done = sweep(disk, *FEW)
        assert done.returncode == 1
        assert "No space left on device" in done.stdout + done.stderr
        found = outcomes(disk)
        assert len(found) < 2
        assert found == {name: expected[name] for name in found}
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True, timeout=60)
        done = sweep(disk, *FEW)
        assert done.returncode == 0, done.stdout + done.stderr
        assert outcomes(disk) == names(expected, "magnitude-p30", "magnitude-p70")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False, timeout=60)


@pytest.fixture
def cache(expected: dict[str, Any], tmp_path: Path) -> Iterator[Path]:
    """The cache of two completed jobs."""
    assert sweep(tmp_path, *FEW).returncode == 0
    return tmp_path / "cache"


def test_a_damaged_cache_is_detected_and_recomputed(expected: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    (scores,), (dense,) = cache.glob("scores/*/magnitude.safetensors"), cache.glob("dense/*.safetensors")
    kept = {name: value.clone() for name, value in load_tensors(scores).items()}  # a copy: the mapped file changes
    flipped = scores.read_bytes()
    scores.write_bytes(flipped[:-9] + bytes([flipped[-9] ^ 64]) + flipped[-8:])
    dense.write_bytes(dense.read_bytes()[:-100])
    done = sweep(tmp_path / "again", f"paths.cache={cache}", *FEW)
    assert done.returncode == 0, done.stderr
    for path in (scores, dense):
        assert f"{path}: " in done.stdout
    assert done.stdout.count("computing it again") == 2
    assert outcomes(tmp_path / "again") == names(expected, "magnitude-p30", "magnitude-p70")
    again = load_tensors(scores)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_results_do_not_depend_on_the_clock(expected: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    # Every file has a time in the future or in the last century.
    for index, path in enumerate(sorted(path for path in tmp_path.rglob("*") if path.is_file())):
        stamp = time.time() + 1e9 if index % 2 else 1e8
        os.utime(path, (stamp, stamp))
    done = sweep(tmp_path, *FEW)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already completed, skipped") == 2
    # In another sweep, the clock jumps back and forth at every call.
    leaping = tmp_path / "leaping"
    leaping.mkdir()
    (leaping / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "now, leaps = time.time, itertools.cycle((0, 1e8, -1e8, 3600, -3600))\n"
        "time.time = lambda: now() + next(leaps)\n"
    )
    path = os.pathsep.join([str(leaping), environment()["PYTHONPATH"]])
    done = sweep(tmp_path / "again", *FEW, fresh=True, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(tmp_path / "again") == names(expected, "magnitude-p30", "magnitude-p70")


def test_four_concurrent_processes_share_one_dense_model_and_one_scoring(
    expected: dict[str, Any], tmp_path: Path
) -> None:
    script = tmp_path / "start.py"
    script.write_text(
        "import sys, mmp.commands\nprint('ready', flush=True)\nsys.stdin.readline()\nmmp.commands.prune()\n"
    )
    strategies = ("p30", "p70", "balanced", "proportional")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = []
    for strategy in strategies:
        command = [sys.executable, str(script), f"paths.results={tmp_path}", f"strategy={strategy}", *QUICK]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes))
    for process in processes:
        assert select.select([process.stdout], [], [], LIMIT)[0]
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    assert sum("dense model trained" in text for text in outputs) == 1
    assert len(list(tmp_path.glob("cache/scores/*/"))) == 1
    found = {path.parent.name: outcome_of(path) for path in tmp_path.glob("runs/*/result.json")}
    assert found == names(expected, *(f"magnitude-{strategy}-" for strategy in strategies))
