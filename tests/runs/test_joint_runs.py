"""Runs with ``reconstruct=joint``, from the command line: what they record, and that an interruption changes no bit."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import warm
from safetensors.torch import load_file

from mmp.pruning.masks import Masks, check_zeros

pytestmark = pytest.mark.slow

QUICK = [
    "model=cnn", "data=digits", "dense.epochs=2", "finetune=none", "logger=none", "trainer.enable_progress_bar=false",
    "reconstruct=joint", "reconstruct.tuning.steps=20", "reconstruct.tuning.batch_size=32",
    "reconstruct.tuning.learning_rate=1e-3",
]  # fmt: skip


def prune(*arguments: str, folder: Path, cache: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    places = [f"paths.results={folder}", f"paths.cache={cache}"]
    done = warm.run(["prune.py", *QUICK, *arguments, *places], {**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def result_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    (path,) = folder.rglob("result.json")
    return path.parent, json.loads(path.read_text())


@pytest.mark.parametrize(
    "options",
    [
        ["strategy=p70", "budget=0.9", "ranges.constraints.small_below=0"],
        ["criterion=lamp", "budget=0.9"],
        ["pattern=2:4"],
        ["pattern=channels", "ranges=channels", "budget=0.5"],
    ],
    ids=["strategy", "baseline", "2:4", "channels"],
)
def test_a_run_records_the_tuning_beside_the_layers(options: list[str], tmp_path: Path) -> None:
    prune(*options, folder=tmp_path, cache=tmp_path / "cache")
    folder, result = result_of(tmp_path)
    tuning = result["reconstruction"]["joint"]
    assert tuning["after"] <= tuning["before"]
    assert (tuning["after"] < tuning["before"]) == (tuning["status"] == "tuned") == (tuning["best_step"] > 0)
    assert (tuning["steps"], tuning["held"]) == (20, 32)
    assert result["reconstruct"] == "joint"
    assert all(layer["after"] <= 1.02 * layer["before"] for layer in result["reconstruction"]["layers"])
    assert result["accuracy"]["reconstructed"] == result["accuracy"]["finetuned"]
    if result["sparsity"] > 0.89:
        assert tuning["status"] == "tuned"
        assert result["accuracy"]["reconstructed"]["test"] > result["accuracy"]["pruned"]["test"]
    masks = Masks(load_file(folder / "masks.safetensors"))
    check_zeros(load_file(folder / "model.safetensors"), masks)
    assert not (folder / "checkpoints").exists()


INTERRUPTED = """
import runpy, signal, sys, os
from mmp.pruning.reconstruction import joint
taken = joint._Descent._step
def step(self, state, loss_of):
    if state.step == 13:
        os.kill(os.getpid(), signal.SIGINT)
    taken(self, state, loss_of)
joint._Descent._step = step
sys.argv = ["prune.py", *sys.argv[1:]]
runpy.run_path("prune.py", run_name="__main__")
"""


def test_an_interrupted_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    whole, parts, cache = tmp_path / "whole", tmp_path / "parts", tmp_path / "cache"
    prune(folder=whole, cache=cache)
    places = [f"paths.results={parts}", f"paths.cache={cache}"]
    done = warm.run([str(script), *QUICK, *places], {**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode
    assert "joint.safetensors" in done.stderr
    (file,) = parts.rglob("joint.safetensors")
    again = prune(folder=parts, cache=cache)
    assert "joint tuning continues after step 12 of 20" in again.stdout + again.stderr
    assert not file.exists()
    (first, expected), (second, found) = result_of(whole), result_of(parts)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert found["accuracy"] == expected["accuracy"]
    assert found["reconstruction"]["joint"] | {"seconds": 0} == expected["reconstruction"]["joint"] | {"seconds": 0}


def test_too_few_calibration_images_are_refused_before_the_dense_training(tmp_path: Path) -> None:
    done = prune("data.calibration=0.03", folder=tmp_path, cache=tmp_path / "cache", check=False)
    assert done.returncode
    assert "reconstruct=joint needs at least 64 calibration images, but data.calibration=0.03 makes" in done.stderr
    assert not [*(tmp_path / "cache").rglob("dense/*")]
