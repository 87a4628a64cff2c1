"""The short trainings: tables from hand-made lines, where validation chooses and test judges; the measurements."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import composed, registered
from partly import partly_slow
from small_files import write_fashion_mnist
from torch import nn

from benchmarks import pruning_runs, short_training
from benchmarks.short_training_report import (
    ablations_table,
    by_configuration,
    chosen,
    claims_table,
    every_table,
    recipes_table,
)  # fmt: skip
from mmp.config.schema import TrainConfig
from mmp.data import readers
from mmp.data.module import ImageData
from mmp.errors import MmpError
from mmp.models.networks import build_model
from mmp.runs.job import PruneJob


@pytest.fixture(autouse=True)
def _files_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning_runs, "register", registered)
    monkeypatch.setattr(pruning_runs, "compose", lambda name, overrides: composed(*overrides, name=name))


def line(part: str, run: str, seed: int, validation: float, test: float) -> dict:
    accuracy = {"dense": {"test": 0.9}, "pruned": {"test": 0.1}, "reconstructed": {"test": 0.8}}
    accuracy["finetuned"] = {"validation": validation, "test": test}
    return {"subject": "levit-85", "part": part, "run": run, "seed": seed, "sparsity": 0.85, "accuracy": accuracy}


LINES = [
    # p50 is better on validation, mean over seeds, and p90 on test.
    line("magnitude", "signal=magnitude strategy=p50", 0, 0.88, 0.87),
    line("magnitude", "signal=magnitude strategy=p90", 0, 0.87, 0.89),
    line("magnitude", "signal=magnitude strategy=p50", 1, 0.87, 0.86),
    line("magnitude", "signal=magnitude strategy=p90", 1, 0.86, 0.88),
    line("magnitude", "signal=magnitude strategy=p70", 1, 0.99, 0.99),  # one seed is too few
    line("baselines", "criterion=snip", 0, 0.85, 0.84),
    line("baselines", "criterion=snip", 1, 0.85, 0.84),
    line("baselines", "criterion=lamp", 0, 0.89, 0.885),
    line("baselines", "criterion=lamp", 1, 0.86, 0.80),
    line("recipes", "criterion=mag finetune=paper", 0, 0.8, 0.82),
    line("recipes", "criterion=mag finetune=strong", 0, 0.8, 0.88),
    line("ablations", "signal=magnitude strategy=p50 ranges.constraints.ceiling=1.0", 0, 0.8, 0.88),
    line("ablations", "signal=magnitude strategy=p50 ranges.constraints.ceiling=1.0", 1, 0.8, 0.87),
]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()[2:]]


def test_validation_chooses() -> None:
    best = chosen(by_configuration(LINES), lambda part, _: part == "magnitude")
    assert {seed: row["run"][-3:] for seed, row in best.items()} == {0: "p50", 1: "p50"}


def test_claims_compare_test_drops_of_what_validation_chose() -> None:
    rows = {row[1]: row for row in cells(claims_table({"levit-85": by_configuration(LINES)}))}
    _, _, mine, yours, ratio, better, seeds, ours, theirs = rows[
        "(a) ten strategies x three signals, against MAG, SNIP, GraSP"
    ]
    assert (ours, theirs) == ("magnitude/p50", "snip")
    # Drops 3 and 4 against 6 and 6: differences 3 and 2, whose 95 % interval is 12.706 * 0.7071 / sqrt(2) wide.
    assert (mine, yours, ratio, better, seeds) == ("3.50", "6.00", "0.58", "+2.50 ± 6.35", "2")
    every = rows["ten strategies x three signals, against all baselines"]
    assert (every[8], every[3]) == ("lamp", "5.75")  # not SNIP, although it loses less where nobody may look


def test_recipes_and_ablations_are_compared_with_the_setting_they_change() -> None:
    found = {"levit-85": by_configuration(LINES)}
    recipes = {"paper": ("finetune=paper",), "strong": ("finetune=strong",)}
    assert cells(recipes_table(found, recipes)) == [
        ["levit-85", "paper", "8.00", "1.00", "+0.00", "1"],
        ["levit-85", "strong", "2.00", "0.25", "+6.00", "1"],
    ]
    (row,) = cells(ablations_table(found, {"levit-85": {"no ceiling": ("ranges.constraints.ceiling=1.0",)}}))
    assert row == ["levit-85", "no ceiling", "3.50 ± 0.71", "2.50 ± 0.71", "+1.00 ± 0.00", "2"]


def test_every_configuration_is_shown_by_rising_drop_but_recipes_and_ablations() -> None:
    shown = [row[1] for row in cells(every_table(by_configuration(LINES)))]
    assert shown == ["magnitude/p70", "magnitude/p90", "magnitude/p50", "lamp", "snip"]


@pytest.mark.slow
def test_measured_runs_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prune(job: PruneJob, *_: object) -> dict:
        measured.append(job.config.criterion["name"])
        accuracy = {"dense": {}, "finetuned": {}}
        return {"sparsity": 0.0, "accuracy": accuracy, "masks_hash": "0" * 64, "epochs": 1, "seconds": {}}

    def dense_model(config: TrainConfig, _: ImageData) -> tuple[nn.Module, bool]:
        trained.append(config.dense.epochs)
        return build_model(config.model), False

    measured, trained = [], []
    monkeypatch.setattr(readers, "FASHION_MNIST_FOLDERS", (write_fashion_mnist(tmp_path / "images", train=400),))
    monkeypatch.setattr(short_training, "ROWS", tmp_path / "short_training.jsonl")
    monkeypatch.setattr(pruning_runs, "prune", prune)
    monkeypatch.setattr(short_training, "dense_model", dense_model)
    arguments = ["subjects=levit-92", "seeds=0", "parts=baselines", f"paths.cache={tmp_path}"]
    monkeypatch.setattr(short_training, "criteria", lambda: ["mag", "lamp"])
    short_training.measure(arguments)
    monkeypatch.setattr(short_training, "criteria", lambda: ["mag", "lamp", "erk"])
    short_training.measure(arguments)
    assert (measured, trained) == (["mag", "lamp", "erk"], [10])
    monkeypatch.setattr(short_training, "RUN", (*short_training.RUN, "finetune.learning_rate=1e-5"))
    short_training.measure(arguments)  # other settings: the old lines do not count
    assert (measured[3:], trained) == (["mag", "lamp", "erk"], [10])
    assert len(short_training.read_rows()) == 6
    with pytest.raises(MmpError, match="choose subjects=cnn-90"):
        short_training.measure(["subjects=resnet"])


@pytest.mark.slow
@pytest.mark.parametrize("name", partly_slow(short_training.SUBJECTS, quick=("levit-92", "cnn-95")))
def test_a_run_of_every_part_is_a_valid_configuration(name: str) -> None:
    subject = short_training.SUBJECTS[name]
    for runs in short_training.parts(subject).values():
        config = short_training.configured(
            [*short_training.RUN, *subject.settings, f"budget={subject.sparsity}", *runs[-1]]
        )
        assert config.budget.of(config.strategy.name) is not None
