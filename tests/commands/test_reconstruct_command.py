"""``prune.py reconstruct=least_squares`` on digits: accuracy before fine-tuning, and the choice of the fine-tuning."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import command
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def prune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command("prune.py", *arguments, f"paths.results={folder}", "dense.epochs=15", check=False)


def read(path: Path) -> dict[str, Any]:
    return {**json.loads(path.read_text()), "folder": path.parent}


def results_of(folder: Path) -> dict[str, Any]:
    found = map(read, folder.glob("sweeps/sweep/*/result.json"))
    return {f"{result['reconstruct']}/{result['finetune']}": result for result in found}


SPARSE = ["strategy=proportional", "budget=0.97", "ranges.constraints.small_below=0"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reconstruct")
    done = prune(folder, "-m", *SPARSE, "reconstruct=none,least_squares", "finetune=none,auto")
    assert done.returncode == 0, done.stderr
    assert "re-solved %" in (folder / "sweeps/sweep/report/results.md").read_text()
    return folder


def test_accuracy_before_fine_tuning_rises(sweep: Path) -> None:
    result = results_of(sweep)["least_squares/none"]
    test = {name: measured["test"] for name, measured in result["accuracy"].items()}
    assert test["dense"] > 0.9
    assert test["pruned"] < 0.6
    assert test["reconstructed"] > test["dense"] - 0.06
    assert test["finetuned"] == test["reconstructed"]
    assert result["sparsity"] == pytest.approx(0.97, abs=1e-5)


def test_masks_hold_and_every_layer_is_reported(sweep: Path) -> None:
    results = results_of(sweep)
    result, plain = results["least_squares/none"], results["none/none"]
    assert result["masks_hash"] == plain["masks_hash"]
    assert plain["reconstruction"] is None
    weights, masks = (load_file(result["folder"] / f"{name}.safetensors") for name in ("model", "masks"))
    assert all(not weights[name][~mask].any() for name, mask in masks.items())
    layers = result["reconstruction"]["layers"]
    assert {layer["name"] for layer in layers} == set(masks)
    assert all(layer["status"] == "solved" and layer["after"] <= 1.02 * layer["before"] for layer in layers)
    assert result["reconstruction"]["left"] == 0
    assert list((sweep / "cache" / "targets").glob("*.safetensors"))
    assert (sweep / "sweeps/sweep/report/reconstruction.csv").is_file()


def test_the_fine_tuning_is_chosen_on_validation(sweep: Path) -> None:
    results = results_of(sweep)
    for name in ("none/auto", "least_squares/auto"):
        result = results[name]
        validation = result["finetune_validation"]
        assert set(validation) == {"none", "gentle", "full"}
        assert result["finetune_choice"] == max(validation, key=lambda choice: validation[choice])
        assert result["accuracy"]["finetuned"]["validation"] == max(validation.values())
        assert (result["epochs"] == 0) == (result["finetune_choice"] == "none")
    untrained = results["least_squares/none"]["accuracy"]["finetuned"]["validation"]
    assert results["least_squares/auto"]["finetune_validation"]["none"] == untrained
    assert results["none/auto"]["finetune_choice"] != "none"


def test_re_solving_is_reproducible_and_works_with_further_signals(sweep: Path) -> None:
    again = sweep / "again"
    signals = "signal=magnitude,obs,obs_fisher,fisher"
    done = prune(
        again, "-m", *SPARSE, signals, "reconstruct=least_squares", "finetune=none", f"paths.cache={sweep}/cache"
    )
    assert done.returncode == 0, done.stderr
    results = {result["signal"]: result for result in map(read, again.glob("sweeps/sweep/*/result.json"))}
    expected = results_of(sweep)["least_squares/none"]
    first, second = (load_file(result["folder"] / "model.safetensors") for result in (expected, results["magnitude"]))
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert len({result["masks_hash"] for result in results.values()}) == 4
    for result in results.values():
        assert result["accuracy"]["finetuned"]["test"] > result["accuracy"]["dense"]["test"] - 0.06


def test_re_solving_refuses_a_gradual_schedule(tmp_path: Path) -> None:
    done = prune(tmp_path, "reconstruct=least_squares", "schedule=cubic")
    assert done.returncode == 1
    assert "schedule=one_shot" in done.stderr.strip().splitlines()[-1]
