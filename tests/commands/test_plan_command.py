"""``python -m mmp.plan`` in real processes: its output, and the files that it writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import warm
from commands import command
from places import ROOT

pytestmark = pytest.mark.slow


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return warm.run(["-m", "mmp.plan", *arguments], environment, folder)


def test_json_is_one_document_and_no_file_is_written(tmp_path: Path) -> None:
    done = run("model=swin_tiny", "ranges=swin", "format=json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert {"model", "parameters", "prunable", "layers", "strategies"} <= set(content)
    assert (content["model"], content["parameters"], content["prunable"]) == ("swin_tiny", 27_596_254, 27_508_224)
    sizes = {layer["name"]: layer["size"] for layer in content["layers"]}
    for strategy in content["strategies"].values():
        pruned = sum(int(round(strategy["layers"][name] * size, 6)) for name, size in sizes.items())
        assert strategy["sparsity"] == pruned / content["prunable"]
        assert strategy["sparsity_all"] == pruned / content["parameters"]
        assert strategy["parameters_left"] == content["parameters"] - pruned
    assert not list(tmp_path.iterdir())


def test_the_command_takes_any_model_and_the_overrides_of_prune(tmp_path: Path) -> None:
    done = run("model=timm", "model.name=convnext_tiny", "model.num_classes=10", "format=csv", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stem.0.weight,patch_embed" in done.stdout
    done = run("experiment=paper/vgg11_cifar10", f"picture={tmp_path}/vgg.png", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"p70 +92\.00", done.stdout)
    assert re.search(r"feature_heavy +88\.00", done.stdout)
    assert (tmp_path / "vgg.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["model=timm", "model.name=convnext_tinny"], ["convnext_tinny", "'convnext_tiny'"]),
        (["model=timm"], ["model.name", "must be set"]),
        (["budget.megabyte=5"], ["budget.megabyte", "'megabytes'"]),
        (["ranges=observed"], ["data=..."]),
        (["model=timm", "model.name=nosuch*"], ["nosuch*", "no model"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    done = run(*arguments, "format=json", folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr.strip().splitlines()[-1]


def test_a_run_prunes_as_planned(tmp_path: Path) -> None:
    shared = ["data=digits", "budget.megabytes=0.6", "dense.epochs=1"]
    planned = run(*shared, "format=json", folder=tmp_path)
    assert planned.returncode == 0, planned.stderr
    places = [f"hydra.run.dir={tmp_path}/run", f"paths.results={tmp_path}/results"]
    done = command("prune.py", *shared, "finetune=none", "strategy=p70", *places)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    content = json.loads(planned.stdout)
    plan = content["strategies"]["p70"]
    assert result["uncovered"] == content["uncovered"]
    assert result["uncovered"]["share"] == pytest.approx(1 - content["prunable"] / content["parameters"])
    assert "No prunable layer covers" in done.stdout + done.stderr
    assert {layer["name"]: layer["sparsity"] for layer in result["layers"]} == plan["layers"]
    assert (result["sparsity"], result["bytes"]["pruned"]) == (plan["sparsity"], plan["bytes"])
    assert result["bytes"]["pruned"] <= 600_000


def test_observed_ranges_are_planned_from_a_trained_model(tmp_path: Path) -> None:
    arguments = ["ranges=observed", "data=digits", "dense.epochs=1", f"paths.results={tmp_path}/results"]
    done = run(*arguments, "format=json", f"picture={tmp_path}/ranges.png", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    layers = json.loads(done.stdout)["layers"]
    assert any(0.10 < layer["lo"] < layer["hi"] for layer in layers)
    assert (tmp_path / "ranges.png").is_file()
    assert list((tmp_path / "results" / "cache" / "observed").glob("*.safetensors"))


def test_the_plan_follows_the_configured_strategy(tmp_path: Path) -> None:
    text = ["strategy=proportional", "strategy.proportional=0.1", "strategy.reference=average"]
    found = [run("model=swin_tiny", "ranges=swin", "format=json", *extra, folder=tmp_path) for extra in ([], text)]
    strategies = [json.loads(done.stdout)["strategies"] for done in found]
    assert strategies[0]["p70"] == strategies[1]["p70"]
    assert strategies[0]["proportional"]["sparsity"] > strategies[1]["proportional"]["sparsity"]
    done = run("+budget.strategies.conservativ=0.5", folder=tmp_path)
    assert "budget.strategies.conservativ: no such strategy; did you mean 'conservative'" in done.stderr
