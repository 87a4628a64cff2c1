"""Baselines: run as strategies are, at the sparsities of strategies, and compared with them in one report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import QUICK, command
from composing import composed

from mmp.config.identity import run_name
from mmp.config.matching import StrategyRun, matched_weights, with_axes
from mmp.config.objects import build_strategy
from mmp.config.validate import validate
from mmp.errors import MmpError
from mmp.models.networks import build_skeleton
from mmp.runs.allocation import Allocator


def written(folder: Path, name: str, **content: object) -> None:
    base = {
        "status": "completed", "model": "cnn", "data": "digits", "signal": "magnitude", "strategy": "p50", "seed": 0,
        "ranges": "generic",
        "criterion": None, "layers": [{"pruned": 7}, {"pruned": 5}], "overrides": [],
    }  # fmt: skip
    (folder / name).mkdir(parents=True)
    (folder / name / "result.json").write_text(json.dumps({**base, **content}))


def test_a_baseline_matches_the_pruned_weights_of_its_strategy(tmp_path: Path) -> None:
    written(tmp_path, "a")
    written(tmp_path, "b", strategy="p90", layers=[{"pruned": 90}])
    written(tmp_path, "c", seed=1, layers=[{"pruned": 13}])
    written(tmp_path, "d", signal=None, criterion="mag", layers=[{"pruned": 1}])
    written(tmp_path, "e", status="failed")
    written(tmp_path, "g", allocation="searched", layers=[{"pruned": 2}])
    written(tmp_path, "h", ranges="mine", layers=[{"pruned": 4}])
    assert matched_weights(tmp_path, StrategyRun("cnn", "digits", "generic", "p50", 0)) == 12
    assert matched_weights(tmp_path, StrategyRun("cnn", "digits", "generic", "p50", 1)) == 13
    assert matched_weights(tmp_path, StrategyRun("cnn", "digits", "generic", "p90", 0)) == 90
    with pytest.raises(
        MmpError, match=r"ranges=generic strategy=p70 seed=0 has no completed run there; there are: model=cnn .*p50"
    ):
        matched_weights(tmp_path, StrategyRun("cnn", "digits", "generic", "p70", 0))
    written(tmp_path, "f", layers=[{"pruned": 3}])
    with pytest.raises(MmpError, match=r"was pruned to 2 different sparsities there; run baselines at those budgets"):
        matched_weights(tmp_path, StrategyRun("cnn", "digits", "generic", "p50", 0))
    with pytest.raises(MmpError, match="holds no completed run of a strategy"):
        matched_weights(tmp_path / "d", StrategyRun("cnn", "digits", "generic", "p50", 0))


def test_a_multirun_gets_the_axes_of_the_matched_sweep(tmp_path: Path) -> None:
    for i, (model, strategy) in enumerate([("cnn", "p50"), ("vit", "p50"), ("vit", "p90")]):
        overrides = [f"model={model}", f"strategy={strategy}", "signal=product", "seed=2", "budget=0.9"]
        written(tmp_path, str(i), model=model, strategy=strategy, overrides=overrides)
    line = ["-m", f"match={tmp_path}"]
    added = ["model=cnn,vit", "strategy=p50,p90", "seed=2", "criterion=glob(*,exclude=none)", "signal=magnitude"]
    assert with_axes(line) == [*line, *added]
    chosen = [*line, "criterion=mag", "model=vit"]
    assert with_axes(chosen) == [*chosen, "strategy=p50,p90", "seed=2", "signal=magnitude"]
    assert with_axes(line[::-1]) == [line[1], *added, "-m"]  # argparse takes no overrides on both sides of an option
    assert with_axes(line[1:]) == line[1:]
    assert with_axes(["-m", "seed=1"]) == ["-m", "seed=1"]
    with pytest.raises(MmpError, match=r"budget=0.5 both set the sparsity"):
        with_axes(["criterion=mag", "budget=0.5", f"match={tmp_path}"])


@pytest.mark.slow
def test_a_baseline_is_named_by_its_criterion_and_does_not_depend_on_a_signal() -> None:
    names = [run_name(composed("criterion=lamp", f"signal={s}")) for s in ("magnitude", "product")]
    assert names[0] == names[1]
    assert names[0].startswith("cnn-digits-lamp-balanced-s0-")
    at = [run_name(composed("criterion=lamp", "budget=0.9", f"strategy={name}")) for name in ("p30", "p90")]
    assert at[0] == at[1]  # the budget decides the global sparsity, not the strategy
    assert at[0].startswith("cnn-digits-lamp-s0-")
    assert run_name(composed("criterion=lamp", "criterion.min_density=0.1")) != names[0]


@pytest.mark.slow
def test_the_identity_has_the_sparsity_of_the_matched_sweep_not_its_folder(tmp_path: Path) -> None:
    names = {}
    for place, pruned in (("a", 7), ("b", 7), ("c", 8)):
        written(tmp_path / place, "run", layers=[{"pruned": pruned}])
        names[place] = run_name(composed("criterion=mag", "strategy=p50", f"match={tmp_path / place}"))
    assert names["a"] == names["b"] != names["c"]
    # The sparsities of the matched sweep take precedence over budgets, which an experiment may set.
    budgeted = composed("criterion=mag", "strategy=p50", "budget=0.5", f"match={tmp_path / 'a'}")
    assert run_name(budgeted).rpartition("-")[2] == names["a"].rpartition("-")[2]
    assert validate(budgeted).budget.sparsity is None


@pytest.mark.parametrize("megabytes", [1000, 0.001])
@pytest.mark.parametrize("who", ["criterion=mag", "criterion=erk", "allocation=lamp"])
def test_sizes_out_of_reach_are_reported_before_training(who: str, megabytes: float) -> None:
    config = validate(composed(who, f"budget.megabytes={megabytes}"))
    allocator = Allocator.of(config, build_strategy(config.strategy))
    message = rf"budget.megabytes={megabytes} is out of reach: .* sizes from 0\.\d+ to 2\.\d+ MB"
    with pytest.raises(MmpError, match=message):
        allocator.check_feasible(build_skeleton(config.model))


def test_a_table_of_another_architecture_is_reported_before_training() -> None:
    config = validate(composed("criterion=mag", "ranges=vgg"))
    allocator = Allocator.of(config, build_strategy(config.strategy))
    with pytest.raises(MmpError, match="vgg"):
        allocator.check_feasible(build_skeleton(config.model))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["match=somewhere"], r"match=somewhere: is for baselines, but criterion=none"),
        (["criterion.name=mine"], r"must have a name and a _target_, the class of the criterion"),
    ],
)
def test_contradictory_settings_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(MmpError, match=message):
        validate(composed(*overrides))


@pytest.mark.slow
def test_all_baselines_run_at_the_sparsities_of_a_sweep_and_are_in_its_report(tmp_path: Path) -> None:
    quick = [f"paths.results={tmp_path}", *QUICK, "trainer.limit_train_batches=2"]
    command("prune.py", "-m", "strategy=conservative,aggressive", *quick)
    sweep = tmp_path / "sweeps" / "sweep"
    done = command("prune.py", "-m", f"match={sweep}", *quick)
    results = [json.loads(path.read_text()) for path in sweep.glob("*/result.json")]
    pruned = {name: set() for name in ("conservative", "aggressive")}
    for result in results:
        assert result["status"] == "completed"
        pruned[result["strategy"]].add(sum(layer["pruned"] for layer in result["layers"]))
    assert len(results) == 2 + 2 * 11
    assert all(len(counts) == 1 for counts in pruned.values())
    # Only these: a weight whose gradient is always zero has score zero under every criterion that uses gradients.
    by_size = [r["masks_hash"] for r in results if r["criterion"] in (None, "mag", "lamp", "erk", "uniform", "random")]
    assert len(set(by_size)) == len(by_size)
    assert {result["criterion"] for result in results if result["signal"] is None} >= {"mag", "lamp", "erk", "grasp"}
    assert "Best strategy against best baseline" in done.stdout
    report = (sweep / "report" / "results.md").read_text()
    assert "best baseline" in report
    assert "lamp | at aggressive" in report


@pytest.mark.slow
def test_a_criterion_reaches_a_budget_that_no_strategy_reaches(tmp_path: Path) -> None:
    quick = ["criterion=uniform", "budget=0.97", "finetune=none", "dense.epochs=1", f"paths.results={tmp_path}"]
    command("prune.py", *quick)
    (path,) = tmp_path.glob("runs/*/result.json")
    result = json.loads(path.read_text())
    assert sum(layer["pruned"] for layer in result["layers"]) == round(0.97 * result["prunable"])
    assert {round(layer["sparsity"], 2) for layer in result["layers"]} == {0.97}
