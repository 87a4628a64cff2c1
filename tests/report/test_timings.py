"""Timings of exports in a report: which are read, and the table, the files and the picture that they are in."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from result_files import channel_result, result, timed, write

from mmp.report.content import build_report
from mmp.report.tables import latencies_table, tables_of
from mmp.report.timings import Timing, timings_of
from mmp.report.write import write_report

ORIGIN = {"engine": "onnxruntime 1.32", "processor": "a processor", "threads": 1}


def test_a_timing_has_the_latency_of_one_image_with_its_quartiles_and_place(tmp_path: Path) -> None:
    one = {"batch": 1, "ratio": 0.5, "quartiles": [0.4, 0.6]}
    timed(tmp_path, "onnx", 0, latency=[{"batch": 32, "ratio": 0.9, "quartiles": [0.8, 1]}, one], **ORIGIN)
    assert timings_of(tmp_path) == (Timing("onnx", 0.5, 0.4, 0.6, "onnxruntime 1.32, a processor, 1 thread"),)


@pytest.mark.parametrize("quartiles", [None, [], [0.4], ["a", "b"], [0.6, 0.7], [0.4, float("inf")], 3])
def test_quartiles_that_cannot_be_right_are_left_out(tmp_path: Path, quartiles: object) -> None:
    timed(tmp_path, "onnx", 0, latency=[{"batch": 1, "ratio": 0.5, "quartiles": quartiles}])
    assert timings_of(tmp_path) == (Timing("onnx", 0.5, 0.5, 0.5, ""),)


def test_exports_that_are_damaged_or_not_timed_have_no_timing(tmp_path: Path) -> None:
    for target, ratio in (("a", "fast"), ("b", -1), ("c", float("inf")), ("d", None)):
        timed(tmp_path, target, ratio)
    timed(tmp_path, "e", 0, latency=[])
    (tmp_path / "export" / "a" / "export.json").write_text("{")
    assert timings_of(tmp_path) == ()


def measured_sweep(folder: Path) -> Path:
    """Write three runs, two of them with channels; one of each kind was timed."""
    contents = [
        result("$p_30$", 0.3, 0.98, 0.97),
        channel_result("p50", 0.5, 0.96, 0.95),
        channel_result("p70", 0.7, 0.9, 0.9),
    ]
    write(folder, *contents)
    timed(folder / "run0", "onnx", 1.0, **ORIGIN)
    timed(folder / "run1", "onnx", 0.6, **{**ORIGIN, "processor": "half \udc80"})
    timed(folder / "run1", "openvino", 0.55)
    return folder


@pytest.mark.slow
def test_tables_and_files_have_only_what_was_measured(tmp_path: Path) -> None:
    report = write_report(measured_sweep(tmp_path))
    rows = [row for group in report.groups for row in latencies_table(group).rows]
    assert rows == [
        ["magnitude/$p_30$", "0", "onnx", "1.00", "", "30.00", "97.00", "+0.50"],
        ["magnitude/p50", "0", "onnx", "0.60", "", "50.00", "95.00", "+2.50"],
        ["magnitude/p50", "0", "openvino", "0.55", "", "50.00", "95.00", "+2.50"],
    ]
    with (tmp_path / "report" / "latency.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["folder"], line["target"], line["latency"]) for line in lines] == [
        ("run0", "onnx", "1.0"), ("run1", "onnx", "0.6"), ("run1", "openvino", "0.55"),
    ]  # fmt: skip
    assert "\N{REPLACEMENT CHARACTER}" in lines[1]["place"]
    assert (tmp_path / "report" / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert "latency / dense" in (tmp_path / "report" / "results.md").read_text()


@pytest.mark.slow
def test_without_a_measured_export_there_is_no_table_and_no_picture(tmp_path: Path) -> None:
    write_report(measured_sweep(tmp_path))
    for path in tmp_path.glob("*/export/*/export.json"):
        path.unlink()
    report = write_report(tmp_path)
    assert [len(tables_of(group)) for group in report.groups] == [1, 1]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "index.html", "pareto.png", "results.csv", "results.md",
    ]  # fmt: skip


def test_a_damaged_export_does_not_spoil_the_result(tmp_path: Path) -> None:
    timed(write(tmp_path, result("p30", 0.3, 0.9, 0.9)) / "run0", "onnx", "fast")
    assert build_report(tmp_path).counts == "1 completed, 0 failed, 0 unfinished"
