"""Allocation by a search over groups of layers, and by a criterion that is combined with another signal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import command
from composing import composed
from safetensors.torch import load_file
from torch import Tensor, nn

from mmp.config.identity import run_name
from mmp.config.objects import build_strategy
from mmp.config.schema import RangesConfig
from mmp.config.validate import validate
from mmp.errors import MmpError
from mmp.pruning.layers.prunable import prunable_layers
from mmp.pruning.search import Trial, best_of, search, search_groups
from mmp.runs.allocation import Allocator
from mmp.runs.calibration import Calibration


def test_groups_divide_all_layers_by_role_and_depth() -> None:
    roles = [
        ("stem", "stem", 0.0), ("a", "conv", 0.1), ("b", "conv", 0.2), ("c", "conv", 0.7), ("q", "attn_qkv", 0.3),
        ("p", "attn_proj", 0.4), ("m", "mlp_fc1", 0.9), ("down", "downsample", 0.5), ("head", "classifier", 1.0),
    ]  # fmt: skip
    layers = [SimpleNamespace(name=name, role=role, depth=depth) for name, role, depth in roles]
    assert search_groups(layers) == {  # type: ignore[arg-type]
        "transitions": ("stem", "down"),
        "conv, first half": ("a", "b"),
        "conv, second half": ("c",),
        "attention, first half": ("q", "p"),
        "mlp, second half": ("m",),
        "classifier": ("head",),
    }


def test_a_search_starts_from_three_strategies_and_improves_on_them() -> None:
    def evaluate(positions: Mapping[str, float]) -> tuple[float, float]:
        return 1 - (positions["a"] - 0.8) ** 2 - (positions["b"] - 0.2) ** 2, 0.5

    trials = search(["a", "b"], evaluate, 40, seed=0, sparsity_varies=False)
    assert [set(trial.positions.values()) for trial in trials[:3]] == [{0.0}, {0.5}, {1.0}]
    best = best_of(trials, None)
    assert best.accuracy == max(trial.accuracy for trial in trials) > max(t.accuracy for t in trials[:3]) + 0.1
    assert trials == search(["a", "b"], evaluate, 40, seed=0, sparsity_varies=False)
    assert trials != search(["a", "b"], evaluate, 40, seed=1, sparsity_varies=False)


def test_a_search_skips_positions_from_which_the_budget_is_out_of_reach() -> None:
    def evaluate(positions: Mapping[str, float]) -> tuple[float, float]:
        if positions["a"] < 0.5:
            raise MmpError("out of reach")
        return positions["a"], positions["a"]

    trials = search(["a"], evaluate, 12, seed=0, sparsity_varies=True)
    assert 2 <= len(trials) < 12
    assert all(trial.positions["a"] >= 0.5 for trial in trials)

    def never(_: Mapping[str, float]) -> tuple[float, float]:
        raise MmpError("budget=0.99 is out of reach")

    with pytest.raises(MmpError, match=r"none of 3 trials is possible; the last error: budget=0.99 is out of reach"):
        search(["a"], never, 3, seed=0, sparsity_varies=True)


def test_the_best_is_the_sparsest_that_is_good_enough_or_else_the_most_accurate() -> None:
    trials = [Trial({}, accuracy, sparsity) for accuracy, sparsity in ((0.91, 0.5), (0.90, 0.7), (0.80, 0.9))]
    assert best_of(trials, 0.9).sparsity == 0.7
    assert best_of(trials, 0.95).sparsity == 0.5
    assert best_of(trials, None).sparsity == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["allocation=searched"], r"set reconstruct=least_squares"),
        (["allocation.name=lmap"], r"allocation.name=lmap: no such allocation.*lamp"),
        (["allocation=lamp", "criterion=mag"], r"allocation=lamp: criterion=mag decides.*set one of the two"),
        (["allocation=searched", "allocation.trials=0"], r"allocation.trials=0"),
    ],
)
def test_contradictory_settings_are_refused(overrides: list[str], message: str) -> None:
    def build() -> Allocator:
        config = validate(composed(*overrides))
        return Allocator.of(config, build_strategy(config.strategy))

    with pytest.raises(MmpError, match=message):
        build()


def test_a_missing_optuna_is_found_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate(composed("allocation=searched", "reconstruct=least_squares"))
    strategy = build_strategy(config.strategy)
    Allocator.of(config, strategy)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MmpError, match=r"pip install 'mmp\[search\]'"):
        Allocator.of(config, strategy)


@pytest.mark.slow
def test_a_searched_run_does_not_depend_on_the_strategy() -> None:
    searched = ("allocation=searched", "reconstruct=least_squares")
    names = [run_name(composed(*searched, f"strategy={name}")) for name in ("p30", "p70")]
    assert names[0] == names[1]
    assert names[0].startswith("cnn-digits-magnitude-searched-s0-")
    ranked = [run_name(composed("allocation=lamp", f"strategy={name}")) for name in ("p30", "p70")]
    assert ranked[0] != ranked[1]  # without a budget, the strategy decides the global sparsity
    assert ranked[0].startswith("cnn-digits-magnitude-lamp-at-p30-s0-")
    budgeted = [run_name(composed("allocation=lamp", "budget=0.9", f"strategy={s}")) for s in ("p30", "p70")]
    assert budgeted[0] == budgeted[1]


def test_observed_ranges_use_the_allocation_of_each_criterion(
    conv_net: nn.Module, image_batches: list[tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    layers = prunable_layers(conv_net)
    calibration = Calibration(conv_net, layers, image_batches, nn.CrossEntropyLoss(), tmp_path, "key")
    uniform, mag = calibration.observe(RangesConfig(name="observed", criteria=["uniform", "mag"], targets=[0.5]))
    assert all(abs(sparsity - 0.5) < 1 / layer.size for layer, sparsity in zip(layers, uniform.values(), strict=True))
    assert uniform != mag


QUICK = ("dense.epochs=2", "finetune=none", "reconstruct=least_squares", "reconstruct.images=128")


def result_of(tmp_path: Path) -> tuple[Path, dict]:
    (path,) = tmp_path.glob("runs/*/result.json")
    return path.parent, json.loads(path.read_text())


@pytest.mark.slow
def test_a_searched_run_meets_its_budget_and_reports_its_search(tmp_path: Path) -> None:
    options = ("allocation=searched", "allocation.trials=5", "model=vit", "budget=0.6", *QUICK)
    command("prune.py", *options, f"paths.results={tmp_path}")
    folder, result = result_of(tmp_path)
    assert result["strategy"] == result["allocation"] == "searched"
    found = result["search"]
    assert found["trials"] == 5
    assert not found["cached"]
    assert len(found["positions"]) > 3
    assert abs(result["sparsity"] - 0.6) < 1 / result["prunable"]
    assert found["validation"] == pytest.approx(result["accuracy"]["reconstructed"]["validation"])
    masks = load_file(folder / "masks.safetensors")
    assert {layer["name"]: layer["pruned"] for layer in result["layers"]} == {
        name: int((~mask).sum()) for name, mask in masks.items()
    }
    command("prune.py", *options, f"paths.results={tmp_path}", "force=true")
    again = result_of(tmp_path)[1]
    assert again["search"]["cached"]
    assert again["masks_hash"] == result["masks_hash"]


@pytest.mark.slow
def test_lamp_decides_how_many_weights_and_the_signal_decides_which(tmp_path: Path) -> None:
    command("prune.py", "allocation=lamp", "budget=0.95", "signal=fisher", *QUICK, f"paths.results={tmp_path}")
    _, result = result_of(tmp_path)
    baseline = tmp_path / "baseline"
    command(
        "prune.py",
        "criterion=lamp",
        "budget=0.95",
        *QUICK,
        f"paths.results={baseline}",
        f"paths.cache={tmp_path}/cache",
    )
    _, lamp = result_of(baseline)
    assert [layer["pruned"] for layer in result["layers"]] == [layer["pruned"] for layer in lamp["layers"]]
    assert result["masks_hash"] != lamp["masks_hash"]
