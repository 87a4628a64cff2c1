"""The study after fine-tuning: its runs, and its tables from hand-made rows, in which validation chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import study, study_report, study_runs
from benchmarks.oneshot_networks import NETWORKS, Network
from benchmarks.pruning_runs import configured
from benchmarks.row_files import read_rows
from benchmarks.study import KEYS, main, planned
from benchmarks.study_report import PAGE, by_level, chosen, claims_table, network_table, networks_table, signals_table
from benchmarks.study_runs import (
    BASELINES,
    RUN,
    SIGNALS,
    SPARSITIES,
    UNPRUNED,
    Run,
    methods,
    parts,
    settings_of_run,
    strategies,
)
from mmp.data.module import ImageData
from mmp.errors import MmpError

Rows = list[dict[str, Any]]
GIVEN = ["network=resnet20", "checkpoint=a.pth", "root=data"]


def row(method: str, seed: int, test: float, validation: float = 0.5, solved: str = "masked", **changes: Any) -> dict:
    """Return a row of ResNet-20 at 90 %, whose dense network has 90 %."""
    accuracy = {"dense": {"test": 0.9}, "pruned": {"test": 0.1}, "reconstructed": {"test": 0.7}}
    accuracy["finetuned"] = {"test": test, "validation": validation}
    known = {"network": "resnet20", "seed": seed, "sparsity": 0.9, "method": method, "solved": solved}
    return known | {"recipe": "01234567", "accuracy": accuracy, "device": "a processor"} | changes


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def of_signal(signal: str, seeds: tuple[int, ...] = (0, 1)) -> Rows:
    """Return rows of a signal's strategies: p30 is better on test pictures, p70 on validation pictures."""
    values = {f"{signal}, p30": (0.88, 0.6), f"{signal}, p70": (0.86, 0.7)}
    return [row(name, seed, *values.get(name, (0.8, 0.5))) for name in strategies(signal) for seed in seeds]


CLAIMED = [
    *(of for signal in SIGNALS for of in of_signal(signal)),
    *(row(name, seed, 0.5, 0.2) for name in BASELINES for seed in (0, 1)),
    row("MAG", 0, 0.82, 0.6), row("MAG", 1, 0.84, 0.6),
    row("SNIP", 0, 0.89, 0.5), row("SNIP", 1, 0.89, 0.5),  # better on test pictures only
    row("LAMP", 0, 0.87, 0.8), row("LAMP", 1, 0.87, 0.8),
]  # fmt: skip


def test_a_claim_compares_what_validation_chose() -> None:
    found = {line[1]: line for line in cells(claims_table(by_level(CLAIMED)))}
    line = found["(a) strategies x signals, against MAG, SNIP, GraSP"]
    # Drops 4 and 4 against 8 and 6: differences 4 and 2, whose 95 % interval is 12.706 * 1.4142 / sqrt(2) wide.
    assert line[2:] == ["4.00", "7.00", "0.57", "+3.00 ± 12.71", "2", "magnitude, p70", "MAG"]
    assert found["strategies x signals, against all criteria"][-1] == "LAMP"
    assert not any(title.startswith("(c)") for title in found)


@pytest.mark.parametrize("missing", [("gradient, p90", 0), ("GraSP", 1)])
def test_a_claim_waits_for_all_runs_of_both_sides(missing: tuple[str, int]) -> None:
    rows = [one for one in CLAIMED if (one["method"], one["seed"]) != missing]
    titles = [line[1] for line in cells(claims_table(by_level(rows)))]
    assert not any(title.startswith("(a)") for title in titles)
    assert "(b) magnitude, against product" in titles


def test_nothing_is_chosen_among_runs_with_other_seeds() -> None:
    (found,) = by_level(CLAIMED).values()
    runs = [Run("GraSP", "masked"), Run("MAG", "masked")]
    best = chosen(found, runs)
    assert best is not None
    assert best[0].method == "MAG"
    assert chosen(found, [Run("obs", "joint")]) is None
    (found,) = by_level([*CLAIMED, row("GraSP", 2, 0.9, 0.99)]).values()
    assert chosen(found, runs) is None


def test_rows_of_two_recipes_are_refused() -> None:
    study_report.require_one_recipe([*CLAIMED, row("MAG", 0, 0.5, network="resnet56_zeros", recipe="fedcba98")])
    with pytest.raises(MmpError, match="resnet20 have the recipes 01234567 and fedcba98; remove the older rows"):
        study_report.require_one_recipe([*CLAIMED, row("MAG", 2, 0.5, recipe="fedcba98")])


def test_the_table_shows_drops_before_and_after_training() -> None:
    rows = [*CLAIMED, row("obs", 0, 0.85, solved="joint"), row("obs", 0, 0.8, solved="joint", sparsity=0.95)]
    found = {(line[0], line[1]): line[2:] for line in cells(network_table(by_level(rows), "resnet20"))}
    assert found["MAG", "masked"] == ["80.00 ± 0.00", "7.00 ± 1.41", "", ""]
    assert found["obs", "joint"] == ["20.00", "5.00", "20.00", "10.00"]
    assert found["magnitude, ten strategies, chosen on validation", "masked"][1] == "4.00 ± 0.00"
    assert found["magnitude, ten strategies, mean", "masked"][1] == "8.44 ± 0.00"
    assert ("product, ten strategies, mean", "layer-wise") not in found


def test_strategies_count_only_if_all_are_measured_with_equal_seeds() -> None:
    table = network_table(by_level(of_signal("magnitude")[1:]), "resnet20")
    assert table == study_report.NOTHING
    both = [*of_signal("magnitude"), *of_signal("product", (0,))]
    assert [line[1] for line in cells(signals_table(by_level(both)))] == ["magnitude", "product"]


def test_unpruned_networks_are_no_level_but_have_their_drop() -> None:
    rows = [*CLAIMED, row(UNPRUNED, 0, 0.91, sparsity=0.0), row(UNPRUNED, 1, 0.89, sparsity=0.0)]
    assert list(by_level(rows)) == [("resnet20", 0.9)]
    (line,) = cells(networks_table(rows))
    assert line == ["ResNet-20", "90.00", "0.00 ± 1.41", "2", str(len(rows)), "a processor"]


def test_the_page_has_a_place_for_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text(encoding="utf-8")
    copy = tmp_path / "study.md"
    copy.write_text(text, encoding="utf-8")
    monkeypatch.setattr(study_report, "PAGE", copy)
    monkeypatch.setattr(study_report, "PICTURE", tmp_path / "a.png")
    study_report.write_report(CLAIMED)
    assert "magnitude, p70" in copy.read_text(encoding="utf-8")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_what_is_unpruned_is_planned_once_for_each_seed() -> None:
    runs = list(planned("resnet20", [0, 1], [0.8, 0.9], ["baselines"]))
    assert [(run["seed"], run["sparsity"]) for run in runs if run["method"] == UNPRUNED] == [(0, 0.0), (1, 0.0)]
    assert len(runs) == 2 + 2 * 2 * 6
    every = [Run(run["method"], run["solved"]) for run in planned("resnet20", [0], [0.9], list(parts()))]
    assert len(set(every)) == len(every)
    assert {run.method for run in every} == set(methods())


@pytest.mark.slow
@pytest.mark.parametrize("network", SPARSITIES)
def test_the_last_run_of_every_part_is_a_valid_configuration(network: str) -> None:
    for runs in parts().values():
        shared = (*NETWORKS[network].settings, *RUN, "data.root=data")
        config = configured([*shared, *settings_of_run(runs[-1], 0.9)])
        assert config.budget.of(config.strategy.name) == 0.9
        assert config.reconstruct.name == {"masked": "none", "layer-wise": "least_squares"}.get(
            runs[-1].solved, "joint"
        )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The last settings of the runs, which are not made; the network is a CNN for digits."""
    made: list[str] = []

    def result_of(settings: list[str], _: ImageData) -> dict[str, Any]:
        made.append(" ".join(settings[-5:-2]))  # after them come its places
        return {"sparsity": 0.9, "accuracy": {}, "masks_hash": "0" * 64, "seconds": {"total": 1.234}}

    monkeypatch.setattr(study, "result_of", result_of)
    monkeypatch.setattr(study, "ROWS", tmp_path / "usual.jsonl")
    monkeypatch.setitem(NETWORKS, "resnet20", Network(("model=cnn", "data=digits", "data.calibration=0.2")))
    monkeypatch.setattr(study_runs, "RUN", RUN[1:])  # without the augmentation of coloured pictures
    return made


@pytest.mark.slow
def test_what_is_measured_is_skipped_unless_its_settings_change(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    words = ["measure", *GIVEN, f"rows={rows}", "seeds=0", "sparsities=0.9", "parts=ours"]
    main(words)
    main(words)
    assert measured[0].endswith("allocation=lamp reconstruct=least_squares budget=0.9")
    assert len(measured) == 4
    main(["merge", str(rows)])
    main([*words[:4], f"rows={tmp_path / 'other.jsonl'}", *words[5:]])
    assert len(measured) == len(read_rows([study.ROWS], KEYS)) == 4
    monkeypatch.setitem(study_runs.SOLVED, "joint", ("reconstruct=joint", "reconstruct.tuning.steps=50"))
    main(words)
    assert len(measured) == 6


@pytest.mark.parametrize(
    "words", [GIVEN[:2], [*GIVEN, "seeds=7"], [*GIVEN, "parts=ours,baselines"], ["network=vgg", *GIVEN[1:]]]
)
def test_a_request_names_what_is_wrong(words: list[str]) -> None:
    with pytest.raises(MmpError, match=r"network=resnet20\|"):
        main(["measure", *words])
    with pytest.raises(MmpError, match="measure network="):
        main(["merge"])
