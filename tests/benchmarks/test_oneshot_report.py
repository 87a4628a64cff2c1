"""The tables and the picture of the one-shot benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import oneshot_picture, oneshot_report
from benchmarks.oneshot_methods import is_strategy, methods
from benchmarks.oneshot_picture import best_lines
from benchmarks.oneshot_report import PAGE, require_one_protocol, write_report
from benchmarks.oneshot_tables import NOTHING, accuracy_table, gain_table, pictures_table, seconds_table
from mmp.errors import MmpError
from tests.helpers.oneshot_rows import row

Rows = list[dict[str, Any]]


def cells(table: str, *columns: str) -> dict[tuple[str, ...], list[str]]:
    """Return the cells of a table's lines by the first cells, here two unless ``columns`` has another number."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    first = len(columns) or 2
    return {tuple(line[:first]): line[first:] for line in lines[2:]}


def of_strategies(*seeds: int) -> Rows:
    """Return rows of all strategies: p30 is better on test pictures, p70 on validation pictures."""
    values = {"strategy p30": (0.8, 0.7), "strategy p70": (0.5, 0.9)}
    names = [method for method in methods() if is_strategy(method)]
    return [row(name, seed, *values.get(name, (0.5, 0.5))) for name in names for seed in seeds]


def test_the_table_chooses_a_strategy_on_validation_pictures() -> None:
    rows = [*of_strategies(0, 1), row("LAMP", 0, 0.6), row("LAMP", 1, 0.7)]
    table = cells(accuracy_table(rows, "resnet20"))
    assert table["strategies, best on validation", "layer-wise"][4] == "50.00 ± 0.00"
    assert table["strategies, best on validation", "masked"][4] == "40.00 ± 0.00"
    assert table["strategies, mean", "layer-wise"][4] == "53.00 ± 0.00"
    assert table["LAMP", "layer-wise"][4] == "65.00 ± 7.07"
    assert table["dense", ""][4] == "90.00"
    assert ("LAMP", "joint") not in table


def test_strategies_are_averaged_only_if_all_are_measured() -> None:
    rows = of_strategies(0)
    assert "strategies" in accuracy_table(rows, "resnet20")
    assert "strategies" not in accuracy_table(rows[1:], "resnet20")
    assert "strategies" not in accuracy_table([*rows, row("strategy p30", 1)], "resnet20")


def test_fewer_pictures_and_steps_are_in_no_table_of_methods() -> None:
    rows = [row("obs", 0, 0.5, images=128), row("obs", 0, 0.5, steps=50, solved="joint")]
    assert accuracy_table(rows, "resnet20") == NOTHING
    assert "90.00" in accuracy_table([*rows, row("obs", 0)], "resnet20")


def test_the_gain_counts_the_methods_that_lose() -> None:
    rows = [row("obs", 0, 0.7), row("obs", 0, 0.8, solved="joint"), row("MAG", 0, 0.6), row("LAMP", 0, 0.6)]
    rows += [row("MAG", 0, 0.59, solved="joint"), row("LAMP", 1, 0.9, solved="joint")]
    rows += [row("ERK", 0, 0.6), row("ERK", 0, 0.63, solved="joint")]
    rows += [row("obs", 0, 0.65, solved="brief")]
    rows += [row("MAG", 1, 0.2)]  # its other side has no such seed
    assert cells(gain_table(rows), "network", "tuning", "pruned") == {
        ("resnet20", "joint", "90 %"): ["+4.00", "-1.00", "+10.00", "1 of 3"],
        ("resnet20", "joint, 400 steps", "90 %"): ["-5.00", "-5.00", "-5.00", "1 of 1"],
    }


def test_the_table_of_pictures_has_what_was_measured_with_several_numbers() -> None:
    rows = [row("obs", 0, 0.8), row("obs", 0, 0.7, images=128), row("LAMP", 0, 0.7, images=512)]
    rows += [row("obs", 0, 0.8, sparsity=0.5), row("obs", 0, 0.6, images=128, steps=50, solved="joint")]
    assert cells(pictures_table(rows), "network", "pruned", "weights") == {
        ("resnet20", "90 %", "layer-wise"): ["70.00", "80.00"]
    }


def test_seconds_of_scores_are_those_of_the_run_that_computed_them() -> None:
    made: Any = {
        "cached": {"scores": False, "search": None},
        "seconds": {"scores": 40.0, "ranges": 0.1, "reconstruct": 9.0},
    }
    other = row("obs", 0, steps=50, seconds={"scores": 1.0, "ranges": 1.0, "reconstruct": 1.0})
    table = seconds_table([row("obs", 0), row("obs", 1), row("obs", 2, **made), other])
    where = ("resnet20", "3000", "processor, 1 thread")
    assert cells(table, *"1234") == {
        (*where, "layer-wise"): ["7.0", "7.0 to 9.0", "3"],
        (*where, "scores of obs"): ["40.0", "40.0 to 40.0", "1"],
    }


def test_rows_with_other_settings_are_refused() -> None:
    require_one_protocol([row("obs", 0), row("obs", 1, protocol="other"), row("LAMP", 0)])
    with pytest.raises(MmpError, match="protocols 12345678 and other; remove the older"):
        require_one_protocol([row("obs", 0), row("LAMP", 0, protocol="other")])


def test_the_picture_has_magnitude_and_the_best_line_on_validation_pictures() -> None:
    rows = [row("MAG", 0, 0.9, 0.3), row("obs", 0, 0.5, 0.6), row("LAMP", 0, 0.8, 0.4)]
    rows.append(row("LAMP", 0, 0.8, 0.4, sparsity=0.5))
    rows.append(row("MAG", 0, 0.8, 0.3, sparsity=0.5))
    assert best_lines(rows, "resnet20") == [
        ("MAG", "masked"), ("LAMP", "masked"), ("MAG", "layer-wise"), ("LAMP", "layer-wise"),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("measured", [True, False])
def test_the_page_has_a_place_for_every_table(measured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, picture = tmp_path / "oneshot.md", tmp_path / "images" / "oneshot.png"
    page.write_text(PAGE.read_text(encoding="utf-8"))
    monkeypatch.setattr(oneshot_report, "PAGE", page)
    monkeypatch.setattr(oneshot_picture, "PICTURE", picture)
    rows = [row("obs", 0), row("obs", 0, images=128), row("obs", 0, solved="joint"), row("MAG", 0)]
    rows += [
        row("obs", 0, steps=50, solved="joint"),
        row("MAG", 0, network="efficientnet_lite0", images=256, sparsity=0.5),
    ]
    write_report(rows if measured else [])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert ("| obs | layer-wise |" in page.read_text()) == measured
