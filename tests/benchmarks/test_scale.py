"""The cost of a grid follows from its pictures and the rates of a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.scale import Grid, seconds_of, wall_of
from benchmarks.scale_rates import Rates
from mmp.errors import MmpError

RATES = Rates("net", 224, 10**9, "a device", forward=1.0, training=3.0, masks=0.5, few=(10, 30.0), most=(30, 70.0))
GRID = Grid(train=100, validation=10, calibration=20, test=30, resolved=50, configurations=5, epochs=2)


def test_seconds_are_pictures_times_rates() -> None:
    assert seconds_of(GRID, RATES) == {
        "dense": 40.0,
        "scores": 60.0,
        "masks": 2.5,
        "re-solving": 110.0,  # 2 s a picture and 10 s in all
        "fine-tuning": 2 * (300.0 + 10.0),
        "measuring": 3 * 40.0,
    }


def test_devices_share_configurations_and_not_what_is_done_once() -> None:
    job = 110.0 + 620.0 + 120.0
    assert wall_of(GRID, RATES, 1) == pytest.approx(102.5 + 5 * job)
    assert wall_of(GRID, RATES, 2) == pytest.approx(102.5 + 3 * job)
    assert wall_of(GRID, RATES, 30) == pytest.approx(102.5 + job)
    assert wall_of(GRID, RATES, 5, tuned=False) == pytest.approx(102.5 + job - 620.0)


def test_noise_makes_no_re_solving_cheaper_with_more_pictures() -> None:
    assert replace(RATES, most=(30, 20.0)).resolving(512) == 30.0


def test_the_report_has_a_line_for_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "ROWS", tmp_path / "scale.jsonl")
    page = tmp_path / "scale.md"
    page.write_text("".join(f"<!-- scale: {name} -->\nold\n<!-- end -->\n" for name in ("grid", "rates", "check")))
    monkeypatch.setattr(scale, "PAGE", page)
    scale.report()
    assert page.read_text().count("Not measured.") == 3
    check = {"device": "a device", "predicted": {"scores": 2.0}, "measured": {"scores": 3.0}}
    for where in ("a device", "another", "another"):
        scale.keep({"rates": vars(replace(RATES, where=where))})
    scale.keep({"check": check})
    scale.report()
    text = page.read_text()
    assert "Not measured." not in text
    assert text.count("| net | 224 px |") == 2
    assert "| scores | a device | 2.00 | 3.00 | 1.50 |" in text
    assert "| net | another |" in text


def test_another_command_is_refused() -> None:
    with pytest.raises(MmpError, match="measure, check or report"):
        scale.main(["costs"])
