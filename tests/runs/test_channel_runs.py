"""Runs with whole channels, from the command line: a parallel sweep, a search, and what their exports have."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from safetensors.torch import load_file
from torch import nn

import mmp
from mmp.pruning.channels.costs import positions_of

pytestmark = pytest.mark.slow

QUICK = [
    "model=cnn", "data=digits", "pattern=channels", "ranges=channels", "dense.epochs=2", "logger=none",
    "trainer.enable_progress_bar=false", "reconstruct=least_squares", "reconstruct.images=128",
]  # fmt: skip


def run(*arguments: str) -> str:
    done = warm.run(list(arguments), {**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs by two workers, trained under a schedule."""
    folder = tmp_path_factory.mktemp("sweep")
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    options = ["budget=0.5", "finetune.epochs=3", "schedule=cubic", "schedule.end=2", "reconstruct=none"]
    run("prune.py", "-m", *QUICK, *options, *parallel, f"paths.results={folder}", "strategy=balanced,classifier_heavy")
    return folder


def runs_of(sweep: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    found = {path.parent: json.loads(path.read_text()) for path in sweep.glob("sweeps/sweep/*/result.json")}
    return {result["strategy"]: (folder, result) for folder, result in found.items()}


def costs_of(network: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """Return the number of parameters, and the multiply-adds of layers with weights."""
    weights = dict(network.named_parameters())
    positions = positions_of(network, image)
    return sum(p.numel() for p in weights.values()), sum(weights[name].numel() * n for name, n in positions.items())


def test_both_workers_share_one_file_of_groups(sweep: Path) -> None:
    assert set(runs_of(sweep)) == {"balanced", "classifier_heavy"}
    assert len([*sweep.glob("cache/channels/*.safetensors")]) == 1


@pytest.mark.parametrize("strategy", ["balanced", "classifier_heavy"])
def test_a_result_has_the_numbers_of_the_exported_network(strategy: str, sweep: Path) -> None:
    folder, result = runs_of(sweep)[strategy]
    run("-m", "mmp.export", str(folder), "target=shrunk")
    network = mmp.load_shrunk(folder / "export/shrunk/model.shrunk.safetensors").eval()
    parameters, multiply_adds = costs_of(network, torch.zeros(1, 1, 16, 16))
    assert parameters == result["parameters_left"]
    assert multiply_adds == result["multiply_adds"]["pruned"] < result["multiply_adds"]["dense"]
    assert result["sparsity_all"] == 1 - parameters / result["parameters"] >= 0.5
    stored = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    assert result["bytes"]["pruned"] == stored

    masks = load_file(folder / "masks.safetensors")
    for layer in result["layers"]:
        rows = masks[layer["name"]].flatten(1).any(1)
        assert layer["pruned"] == int((~rows).sum()) < layer["total"] == len(rows)
        assert layer["pruned"] % 16 == 0
        assert layer["sparsity"] == pytest.approx(layer["pruned"] / layer["total"])
        assert layer["pattern"] == ("channels" if layer["pruned"] else None)
    weights = load_file(folder / "model.safetensors")
    assert all(not weights[name][~mask].any() for name, mask in masks.items())


def test_a_search_over_groups_meets_its_budget(sweep: Path, tmp_path: Path) -> None:
    options = ["allocation=searched", "allocation.trials=4", "budget.macs=0.5", "finetune=none"]
    run("prune.py", *QUICK, *options, f"paths.results={tmp_path}", f"paths.cache={sweep}/cache")
    (path,) = tmp_path.glob("runs/*/result.json")
    result = json.loads(path.read_text())
    assert result["strategy"] == result["allocation"] == "searched"
    assert result["search"]["trials"] == 4
    assert result["search"]["validation"] == pytest.approx(result["accuracy"]["reconstructed"]["validation"])
    assert result["multiply_adds"]["pruned"] <= 0.5 * result["multiply_adds"]["dense"]
    masks = load_file(path.parent / "masks.safetensors")
    assert [layer["pruned"] for layer in result["layers"]] == [
        int((~masks[layer["name"]].flatten(1).any(1)).sum()) for layer in result["layers"]
    ]
