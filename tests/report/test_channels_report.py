"""Reports of runs that prune whole channels: groups of their own, compared by the parameters that they remove."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from result_files import channel_result, result, write
from rich.console import Console

from mmp.errors import MmpError
from mmp.report.compare import compare
from mmp.report.content import build_report
from mmp.report.groups import Group
from mmp.report.tables import comparison_table, configurations_table
from mmp.report.write import write_comparison, write_report

UNSTRUCTURED = [result("p30", 0.3, 0.98, 0.97), result("p70", 0.7, 0.96, 0.95, seed=1)]


def group_of(folder: Path, *contents: dict[str, Any]) -> Group:
    (group,) = build_report(write(folder, *contents)).groups
    return group


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "report" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def cells_of(group: Group) -> list[dict[str, str]]:
    table = configurations_table(group)
    return [dict(zip(table.headings, cells, strict=True)) for cells in table.rows]


def test_the_table_has_what_is_removed_what_is_left_and_the_size(tmp_path: Path) -> None:
    group = group_of(tmp_path, channel_result("p50", 0.5, 0.96, 0.95))
    (row,) = cells_of(group)
    assert [row[heading] for heading in ("removed %", "MACs %", "MB", "test %", "drop")] == [
        "50.00", "75.00", "2.00", "95.00", "+2.50",
    ]  # fmt: skip
    assert not {"sparsity %", "of all %"} & row.keys()
    assert group.title == "cnn on digits, whole channels"


def test_the_front_is_over_removed_parameters(tmp_path: Path) -> None:
    # The zeros among the prunable weights would put the three in the opposite order.
    contents = [
        channel_result("a", 0.3, 0.98, 0.9, sparsity=0.7),
        channel_result("b", 0.5, 0.97, 0.9, sparsity=0.6),
        channel_result("c", 0.4, 0.96, 0.9, sparsity=0.8),
    ]
    group = group_of(tmp_path, *contents)
    found = [(one.runs[0].strategy, one.efficient) for one in group.configurations]
    assert found == [("a", True), ("c", False), ("b", True)]


@pytest.mark.slow
def test_channels_and_single_weights_are_groups_of_their_own(tmp_path: Path) -> None:
    contents = [result("p50", 0.9, 0.99, 0.9), channel_result("p50", 0.5, 0.90, 0.9)]
    others = [channel_result("p50", 0.6, 0.89, 0.9, pattern="channels:8"), result("p70", 0.3, 0.8, 0.8, pattern="2:4")]
    report = write_report(write(tmp_path, *contents, *others))
    found = {group.title: [(one.name, one.efficient) for one in group.configurations] for group in report.groups}
    assert found == {
        "cnn on digits": [("magnitude/p70 pattern=2:4", False), ("magnitude/p50", True)],
        "cnn on digits, whole channels": [
            ("magnitude/p50 pattern=channels", True),
            ("magnitude/p50 pattern=channels:8", True),
        ],
    }


@pytest.mark.slow
def test_unstructured_tables_do_not_depend_on_channels_beside_them(tmp_path: Path) -> None:
    alone = write_report(write(tmp_path / "alone", *UNSTRUCTURED))
    mixed = write_report(write(tmp_path / "mixed", *UNSTRUCTURED, channel_result("p50", 0.5, 0.96, 0.95)))
    assert configurations_table(alone.groups[0]) == configurations_table(mixed.groups[0])
    assert alone.summaries[0] == mixed.summaries[0]


@pytest.mark.slow
def test_the_csv_file_has_columns_of_channels_only_with_channels(tmp_path: Path) -> None:
    failed = channel_result("p90", 0, 0, 0, status="failed", error={"type": "E", "message": "m"})
    write_report(write(tmp_path / "mixed", *UNSTRUCTURED, channel_result("p50", 0.5, 0.96, 0.95), failed))
    write_report(write(tmp_path / "alone", *UNSTRUCTURED))
    columns = ("parameters", "parameters_left", "multiply_adds", "reason")
    assert [[row[column] for column in columns] for row in rows_of(tmp_path / "mixed")] == [
        ["1000", "", "", ""],
        ["1000", "", "", ""],
        ["1000", "500", "0.75", ""],
        ["", "", "", "E: m"],
    ]
    assert not set(columns[:3]) & rows_of(tmp_path / "alone")[0].keys()


def test_the_summary_speaks_of_removed_parameters(tmp_path: Path) -> None:
    contents = [channel_result("p50", 0.497, 0.96, 0.95), channel_result("p70", 0.52, 0.95, 0.94)]
    (summary,) = build_report(write(tmp_path, *contents)).summaries
    (line,) = [line for line in summary if line.startswith("Best")]
    assert line.startswith(
        "Best on validation, 40 to 60 % of the parameters removed: magnitude/p50 at 49.7 %, 75.1 % of the "
        "multiply-adds left, drop +2.50 points, 2.01 MB."
    )
    assert "sparsity" not in " ".join(summary)


@pytest.mark.slow
def test_results_without_the_newest_keys_are_read(tmp_path: Path) -> None:
    old = channel_result("p50", 0.5, 0.96, 0.95)
    del old["parameters_left"], old["multiply_adds"]
    group = group_of(tmp_path / "old", old)
    assert cells_of(group)[0]["MACs %"] == ""
    report = write_report(tmp_path / "old")
    assert "multiply-adds" not in " ".join(report.summaries[0])
    assert '"multiply_adds":null' in (tmp_path / "old" / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"parameters_left": "few"}, "parameters_left='few' must be a number"),
        ({"multiply_adds": {"dense": 0, "pruned": 0}}, "multiply_adds.dense=0 must be positive"),
        ({"multiply_adds": {"dense": 10}}, "key 'multiply_adds.pruned' is missing"),
        ({"multiply_adds": 0.5}, "key 'multiply_adds.dense' is missing"),
    ],
)
def test_damaged_values_are_named(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    report = build_report(write(tmp_path, channel_result("p50", 0.5, 0.96, 0.95, **changes)))
    assert [run.reason for run in report.failed] == [f"result.json cannot be read: {part}"]


def test_sweeps_with_channels_are_compared_with_each_other_alone(tmp_path: Path) -> None:
    a = write(tmp_path / "a", channel_result("p50", 0.5, 0.96, 0.95, sparsity=0.3))
    b = write(tmp_path / "b", channel_result("p50", 0.5, 0.96, 0.96, sparsity=0.4))
    (found,) = compare(*(build_report(folder).groups for folder in (a, b)))
    assert not found.comparisons[0].obstacle  # the same share of parameters, whatever share of weights is zero
    table = comparison_table(found)
    assert table.headings[1:3] == ["removed A %", "removed B %"]
    assert table.rows[0][1:3] == ["50.00", "50.00"]
    c = write(tmp_path / "c", result("p50", 0.5, 0.96, 0.95))
    with pytest.raises(MmpError, match=r"no comparable configuration \(cnn on digits, whole channels \| cnn on digits"):
        write_comparison(a, c)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "headings"), [(80, "removed MACs MB test drop"), (160, "removed MACs MB val test")])
def test_the_table_fits_the_terminal(tmp_path: Path, width: int, headings: str) -> None:
    console = Console(width=width, file=StringIO())
    runs = [
        channel_result("classifier_heavy", 0.5, 0.9, 0.9 + seed / 100, signal="obs_fisher", seed=seed)
        for seed in (0, 1)
    ]
    write_report(write(tmp_path, *runs), console, tables=True)
    lines = console.file.getvalue().splitlines()
    assert headings in " ".join(lines[1].split())
    assert max(map(len, lines[: lines.index("")])) <= width


@pytest.mark.slow
def test_the_page_knows_which_group_removes_channels(tmp_path: Path) -> None:
    write_report(write(tmp_path, *UNSTRUCTURED, channel_result("p50", 0.5, 0.96, 0.95)))
    page = (tmp_path / "report" / "index.html").read_text()
    data = json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    assert [group["prunes"] for group in data["groups"]] == ["weights", "channels"]
    (run,) = data["groups"][1]["configurations"][0]["runs"]
    assert (run["reduction"], run["multiply_adds"]) == (0.5, 0.75)
    assert [run["reduction"] for one in data["groups"][0]["configurations"] for run in one["runs"]] == [0.3, 0.7]
