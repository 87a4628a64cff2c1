"""A sweep in a real process, checked by its files only.

The checks do not use the code that wrote the files: they read weights and masks with safetensors and recompute the
counts in ``result.json``.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, command
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four strategies x two signals, in a folder with a space in its name."""
    results = tmp_path_factory.mktemp("results")
    folder = results / "my sweep"
    command(
        "prune.py",
        "-m",
        f"paths.results={results}",
        f"hydra.sweep.dir='{folder}'",
        "signal=magnitude,product",
        "strategy=balanced,p50,aggressive,proportional",
        *QUICK,
        fresh=True,
    )
    return folder


def runs(folder: Path) -> dict[str, tuple[Path, dict]]:
    found = {}
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        found[f"{result['signal']}/{result['strategy']}"] = (path.parent, result)
    return found


def test_every_configuration_has_a_completed_result_and_all_its_files(sweep: Path) -> None:
    found = runs(sweep)
    assert len(found) == 8
    for folder, result in found.values():
        assert result["status"] == "completed"
        assert result["schema_version"] == 1
        names = {path.name for path in folder.iterdir()}
        assert {"result.json", "masks.safetensors", "model.safetensors", "config.yaml", "prune.log"} <= names
        assert not [name for name in names if name.endswith((".tmp", ".ckpt"))]


def test_weights_under_the_mask_are_zero_and_counts_are_exact(sweep: Path) -> None:
    for folder, result in runs(sweep).values():
        masks, weights = load_file(folder / "masks.safetensors"), load_file(folder / "model.safetensors")
        pruned_in_all = total_in_all = 0
        assert set(masks) == {layer["name"] for layer in result["layers"]}
        for layer in result["layers"]:
            mask, weight = masks[layer["name"]], weights[layer["name"]]
            assert mask.shape == weight.shape
            assert layer["lo"] <= layer["sparsity"] <= layer["hi"]
            assert layer["total"] == mask.size
            assert layer["pruned"] == (~mask).sum() == math.floor(round(layer["sparsity"] * mask.size, 6))
            dead = weight[~mask]
            assert (dead == 0.0).all()
            assert not np.signbit(dead).any()
            pruned_in_all += layer["pruned"]
            total_in_all += layer["total"]
        everything = [v for name, v in weights.items() if not name.endswith(("running_mean", "running_var", "tracked"))]
        assert result["sparsity"] == pytest.approx(pruned_in_all / total_in_all)
        assert result["sparsity_all"] == pytest.approx(pruned_in_all / sum(v.size for v in everything))


def test_results_are_consistent_and_measured_on_the_whole_test_set(sweep: Path) -> None:
    for _, result in runs(sweep).values():
        accuracy = result["accuracy"]
        assert accuracy.keys() == {"dense", "pruned", "finetuned"}
        assert result["drop"] == pytest.approx(100 * (accuracy["dense"]["test"] - accuracy["finetuned"]["test"]))
        assert result["samples"]["test"] == 360
        assert sum(result["samples"].values()) == 1797
        correct = accuracy["finetuned"]["test"] * 360
        assert correct == pytest.approx(round(correct), abs=1e-3)
        assert result["seconds"].keys() >= {"scores", "masks", "finetune", "total"}
        assert result["peak_memory_bytes"]["host"] > 0


def test_scores_and_dense_model_are_computed_once(sweep: Path) -> None:
    found = [result for _, result in runs(sweep).values()]
    assert sum(not result["scores"]["cached"] for result in found) == 1
    assert sum(not result["dense_cached"] for result in found) == 1
    assert len({result["scores"]["key"] for result in found}) == 1


def test_equal_sparsities_give_equal_masks_and_different_signals_different_ones(sweep: Path) -> None:
    found = {name: result for name, (_, result) in runs(sweep).items()}
    assert found["magnitude/balanced"]["masks_hash"] == found["magnitude/p50"]["masks_hash"]
    assert found["magnitude/balanced"]["accuracy"] == found["magnitude/p50"]["accuracy"]
    assert found["magnitude/balanced"]["masks_hash"] != found["product/balanced"]["masks_hash"]
    assert found["magnitude/balanced"]["sparsity"] == found["product/balanced"]["sparsity"]
    assert found["magnitude/aggressive"]["sparsity"] > found["magnitude/balanced"]["sparsity"]


def test_the_report_is_written_at_the_end(sweep: Path) -> None:
    for name in ("results.csv", "results.md", "pareto.png", "index.html"):
        assert (sweep / "report" / name).stat().st_size > 500


def test_the_same_command_runs_no_completed_job(sweep: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/model.safetensors")}
    done = command(
        "prune.py",
        "-m",
        f"paths.results={sweep.parent}",
        f"hydra.sweep.dir='{sweep}'",
        "signal=magnitude,product",
        "strategy=balanced,p50",
        *QUICK,
    )
    assert done.stdout.count("already completed") == 4
    assert before == {path: path.stat().st_mtime_ns for path in sweep.glob("*/model.safetensors")}


def test_a_failed_job_is_reported_and_does_not_stop_others(tmp_path: Path, sweep: Path) -> None:
    done = command(
        "prune.py",
        "-m",
        f"paths.results={tmp_path}",
        f"paths.cache={sweep.parent / 'cache'}",
        "strategy=conservative,aggressive",
        "finetune.learning_rate=1e30,1e-3",
        "finetune.optimizer=sgd",
        "finetune.scheduler=none",
        *QUICK,
        check=False,
    )
    assert done.returncode == 1
    found = [(path.parent, json.loads(path.read_text())) for path in tmp_path.glob("sweeps/sweep/*/status.json")]
    assert sorted(result["status"] for _, result in found) == ["completed", "completed", "failed", "failed"]
    for folder, result in found:
        if result["status"] == "failed":
            assert "lower the learning rate" in result["error"]["message"]
            assert result["run_name"] in done.stdout + done.stderr
            assert not (folder / "model.safetensors").exists()
    assert "Traceback" not in done.stdout + done.stderr


def test_a_job_with_an_invalid_value_fails_the_sweep(tmp_path: Path, sweep: Path) -> None:
    done = command(
        "prune.py",
        "-m",
        f"paths.results={tmp_path}",
        f"paths.cache={sweep.parent / 'cache'}",
        "finetune.learning_rate=0,1e-3",
        *QUICK,
        check=False,
    )
    assert done.returncode == 1
    assert "1 completed, 1 failed" in done.stdout
    assert "finetune.learning_rate=0" in done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_full_disk_stops_the_sweep_in_two_lines_and_the_same_command_continues(
    small_disk: Path, sweep: Path, launcher: str
) -> None:
    words = ["prune.py", "-m", f"paths.results={small_disk}", f"paths.cache={sweep.parent / 'cache'}"]
    words += [f"hydra/launcher={launcher}", *(["hydra.launcher.n_jobs=1"] if launcher == "joblib" else [])]
    words += ["strategy=balanced,p50", *QUICK]
    done = command(*words, check=False)
    assert done.returncode == 1
    *_, reason, again = done.stderr.splitlines()
    assert reason.startswith("interrupted: 0 of 2 jobs are done, 1 failed, 1 is left; cannot write ")
    assert reason.endswith("No space left on device; free some space")
    assert again.startswith("the same command continues: ")
    assert "Traceback" not in done.stdout + done.stderr
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert "2 completed, 0 failed" in command(*words).stdout


def test_one_run_with_observed_ranges_a_gradual_schedule_and_a_budget(tmp_path: Path, sweep: Path) -> None:
    folder = tmp_path / "here"
    command(
        "prune.py",
        f"hydra.run.dir={folder}",
        f"paths.results={tmp_path}",
        f"paths.cache={sweep.parent / 'cache'}",
        "ranges=observed",
        "schedule=cubic",
        "schedule.end=1",
        "budget=0.7",
        "signal=gradient",
        *QUICK,
        "finetune.epochs=2",
    )
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["sparsity"] == pytest.approx(0.7, abs=1e-4)
    assert len({(layer["lo"], layer["hi"]) for layer in result["layers"]}) > 2
