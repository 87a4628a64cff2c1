"""Reports of hand-made result files: what they read, choose, mark and escape, and the exit codes of the command."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from result_files import full_sweep, result, write
from rich.console import Console
from warm import LIMIT

from mmp.errors import MmpError
from mmp.report.__main__ import main
from mmp.report.content import build_report
from mmp.report.groups import Group, pareto_front
from mmp.report.results import Run
from mmp.report.tables import configurations_table
from mmp.report.write import write_report


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "report" / "results.csv").open() as file:
        return list(csv.DictReader(file))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30))
def test_the_pareto_front_meets_its_definition(points: list[tuple[int, int]]) -> None:
    def beaten(p: tuple[int, int]) -> bool:
        return any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)

    assert pareto_front(points) == [not beaten(p) for p in points]


def test_the_front_is_chosen_on_validation_and_never_on_test(tmp_path: Path) -> None:
    write(tmp_path, result("good on validation", 0.5, 0.98, 0.80), result("good on test", 0.5, 0.90, 0.97))
    group = build_report(tmp_path).groups[0]
    assert [one.name for one in group.configurations if one.efficient] == ["magnitude/good on validation"]


@pytest.mark.slow
def test_each_of_many_configurations_with_the_same_masks_names_a_few(tmp_path: Path) -> None:
    write(tmp_path, *(result(f"s{i:02}", 0.5, 0.9, 0.9, masks_hash="same") for i in range(12)))
    report = write_report(tmp_path)
    names = [f"magnitude/s{i:02}" for i in range(1, 9)] + ["and 3 more"]
    assert rows_of(tmp_path)[0]["identical_to"] == "; ".join(names)
    assert ", ".join(names) in (tmp_path / "report" / "results.md").read_text()
    assert json.dumps(names, separators=(",", ":")) in (tmp_path / "report" / "index.html").read_text()
    one = report.groups[0].configurations[0]
    assert (len(one.twins), one.named_twins) == (11, names)


@pytest.mark.slow
def test_reconstruction_is_shown_where_a_run_has_it(tmp_path: Path) -> None:
    layer = {"name": "a.weight", "kept": 7, "before": 0.5, "after": 0.25, "status": "solved", "seconds": 0.1}
    solved = result("p90", 0.9, 0.9, 0.85, reconstruction={"layers": [layer]})
    solved["accuracy"]["reconstructed"] = {"validation": 0.8, "test": 0.81}
    write(tmp_path, result("p30", 0.3, 0.98, 0.97), solved)
    write_report(tmp_path)
    assert [row["reconstructed_test"] for row in rows_of(tmp_path)] == ["", "0.81"]
    (row,) = csv.DictReader((tmp_path / "report" / "reconstruction.csv").open())
    assert row == {
        "folder": "run1", "layer": "a.weight", "kept": "7", "before": "0.5", "after": "0.25", "status": "solved",
        "seconds": "0.1",
    }  # fmt: skip
    markdown = (tmp_path / "report" / "results.md").read_text()
    assert "re-solved %" in markdown
    assert "81.00" in markdown


@pytest.mark.slow
def test_the_csv_file_has_every_number_as_it_is_in_the_result(tmp_path: Path) -> None:
    write(tmp_path, result("p30", 0.3, 0.98, 0.97), result("p90", 0.9, 0.9, 0.85))
    write_report(tmp_path)
    first, second = rows_of(tmp_path)
    assert [first["strategy"], second["strategy"]] == ["p30", "p90"]
    assert float(second["sparsity"]) == 0.9
    assert float(second["sparsity_all"]) == pytest.approx(0.81)
    assert float(second["validation"]) == 0.9
    assert float(second["test"]) == 0.85
    assert float(second["drop"]) == pytest.approx(12.5)
    assert float(second["dense_test"]) == 0.975
    assert [first["pareto"], second["pareto"]] == ["1", "1"]


@pytest.mark.slow
def test_configurations_with_identical_masks_are_marked(tmp_path: Path) -> None:
    same = {"masks_hash": "abc"}
    write(
        tmp_path,
        result("balanced", 0.5, 0.9, 0.9, **same),
        result("p50", 0.5, 0.9, 0.9, **same),
        result("p70", 0.7, 0.9, 0.9),
    )
    write_report(tmp_path)
    marks = {row["strategy"]: row["identical_to"] for row in rows_of(tmp_path)}
    assert marks == {"balanced": "magnitude/p50", "p50": "magnitude/balanced", "p70": ""}


def test_models_and_data_sets_are_never_compared_with_each_other(tmp_path: Path) -> None:
    write(tmp_path, result("p30", 0.3, 0.8, 0.8), result("p50", 0.5, 0.9, 0.9, model="vit"))
    report = build_report(tmp_path)
    assert [(group.title, [one.efficient for one in group.configurations]) for group in report.groups] == [
        ("cnn on digits", [True]),
        ("vit on digits", [True]),
    ]


def test_noise_is_the_binomial_standard_error(tmp_path: Path) -> None:
    group = build_report(write(tmp_path, result("p30", 0.3, 0.8, 0.8))).groups[0]
    assert group.noise("test") == pytest.approx((0.975 * 0.025 / 400) ** 0.5)
    assert group.noise("validation") == pytest.approx((0.99 * 0.01 / 100) ** 0.5)


def test_a_configuration_has_the_mean_and_deviation_of_its_seeds() -> None:
    drops = (1.0, 2.0, 4.5)
    runs = [Run(f"r{i}", "completed", strategy="p30", seed=i, drop=drop) for i, drop in enumerate(drops)]
    table = configurations_table(Group("cnn", "digits", runs))
    (row,) = (dict(zip(table.headings, cells, strict=True)) for cells in table.rows)
    assert (row["strategy"], row["seeds"], row["drop"], row["sd"]) == ("p30", "3", "+2.50", "1.80")


def test_one_lucky_seed_is_not_efficient(tmp_path: Path) -> None:
    write(
        tmp_path,
        *(result("p30", 0.5, 0.90, 0.9, seed=seed) for seed in (0, 1)),
        result("p50", 0.6, 0.99, 0.9, seed=0),
    )
    (group,) = build_report(tmp_path).groups
    assert {one.name: one.efficient for one in group.configurations} == {"magnitude/p30": True, "magnitude/p50": False}


def test_means_do_not_depend_on_the_order_of_seeds(tmp_path: Path) -> None:
    accuracies = [158 / 171, 159 / 171, 161 / 171]
    orders = [(0, 1, 2), (1, 2, 0), (2, 1, 0), (2, 0, 1)]
    contents = [
        result(f"s{i}", 0.5, accuracies[k], 0.9, seed=seed)
        for i, order in enumerate(orders)
        for seed, k in enumerate(order)
    ]
    (group,) = build_report(write(tmp_path, *contents)).groups
    assert [one.efficient for one in group.configurations] == [True] * 4


@pytest.mark.slow
def test_other_settings_are_named_by_their_overrides(tmp_path: Path) -> None:
    rates = [
        result("p50", 0.5, 0.9, 0.9, configuration=rate, overrides=["strategy=p50", f"finetune.learning_rate={rate}"])
        for rate in ("1e-3", "1e-4")
    ]
    write_report(write(tmp_path, *rates))
    assert {row["other"] for row in rows_of(tmp_path)} == {"finetune.learning_rate=1e-3", "finetune.learning_rate=1e-4"}
    assert "finetune.learning\\_rate=1e-4" in (tmp_path / "report" / "results.md").read_text()


@pytest.mark.slow
def test_control_characters_are_replaced_and_long_texts_are_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "half \udc80, bell \x07, clear \x1b[2J " + "long " * 1000
    failed = [result(f"s{i}", 0, 0, 0, status="failed", error={"type": "E", "message": message}) for i in range(30)]
    write(tmp_path, result("p50", 0.5, 0.9, 0.9), *failed)
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "18 more" in printed
    assert len(printed) < 10_000
    for name in ("results.csv", "results.md", "index.html"):
        assert "\x1b[2J" not in (tmp_path / "report" / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers", [[{"name": "a"}], [{"name": "a", "role": "conv", "lo": 0, "hi": 1, "pruned": 0, "total": 0}]]
)
def test_layers_that_cannot_be_read_do_not_spoil_the_result(tmp_path: Path, layers: list[dict[str, Any]]) -> None:
    report = write_report(write(tmp_path, result("p50", 0.5, 0.9, 0.9, layers=layers)))
    assert report.counts == "1 completed, 0 failed, 0 unfinished"


@pytest.mark.slow
def test_the_working_folder_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path / "mine", result("p50", 0.5, 0.9, 0.9)))
    write_report(Path())
    assert "# Sweep mine" in (tmp_path / "mine" / "report" / "results.md").read_text()


@pytest.mark.slow
def test_runs_with_different_settings_are_different_configurations(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {"finetune": "default"},
        {"finetune": "none"},
        {"finetune": "none", "reconstruct": "least_squares"},
        {"budget": 0.9},
        {"pattern": "2:4"},
    ]
    contents = [result("p30", 0.5, 0.9, 0.9, seed=s, drop=i + s, **c) for i, c in enumerate(settings) for s in (0, 1)]
    (group,) = write_report(write(tmp_path, *contents)).groups
    table = configurations_table(group)
    rows = [dict(zip(table.headings, cells, strict=True)) for cells in table.rows]
    columns = ("pattern", "reconstruct", "finetune", "budget", "seeds")
    assert sorted(tuple(row[column] for column in columns) for row in rows) == [
        ("", "", "", "0.9", "2"),
        ("", "", "default", "", "2"),
        ("", "", "none", "", "2"),
        ("", "least_squares", "none", "", "2"),
        ("2:4", "", "", "", "2"),
    ]
    assert {row["budget"] for row in rows_of(tmp_path)} == {"", "0.9"}


@pytest.mark.slow
def test_a_failed_attempt_is_listed_beside_the_result_that_stays(tmp_path: Path) -> None:
    write(tmp_path, result("p30", 0.3, 0.9, 0.9))
    folder = next(tmp_path.glob("*/result.json")).parent
    error = {"type": "MmpError", "message": "data.workers=-1 is out of range"}
    (folder / "status.json").write_text(json.dumps({"status": "failed", "error": error}))
    report = write_report(tmp_path)
    assert report.counts == "1 completed, 1 failed, 0 unfinished"
    assert "data.workers=-1" in report.failed[0].reason


@pytest.mark.slow
def test_failures_and_damaged_files_are_listed_with_their_reason(tmp_path: Path) -> None:
    failed = result("p70", 0, 0, 0, status="failed", error={"type": "MmpError", "message": "the loss became nan"})
    running = result("p90", 0, 0, 0, status="running", error=None)
    write(tmp_path, result("p30", 0.3, 0.9, 0.9), failed, running)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text('{"status": "comp')
    report = write_report(tmp_path)
    assert report.counts == "1 completed, 2 failed, 1 unfinished"
    for name in ("results.md", "index.html"):
        text = (tmp_path / "report" / name).read_text()
        assert "the loss became nan" in text
        assert "broken" in text
    assert [row["status"] for row in rows_of(tmp_path)] == ["completed", "failed", "failed", "running"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"accuracy": {}}, "key 'accuracy.finetuned.validation' is missing"),
        ({"accuracy": "high"}, "key 'accuracy.finetuned.validation' is missing"),
        ({"drop": "2.5"}, "drop='2.5' must be a number"),
        ({"epochs": True}, "epochs=True must be a number"),
        ({"model": 3}, "model=3 must be a string"),
        ({"history": [1]}, "history must be a list of objects"),
        ({"overrides": {"a": 1}}, "overrides={'a': 1} must be a list of strings"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_of_the_wrong_type_is_named(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    report = build_report(write(tmp_path, {**result("p30", 0.3, 0.9, 0.9), **changes}, result("p50", 0.5, 0.9, 0.9)))
    assert report.counts == "1 completed, 1 failed, 0 unfinished"
    assert report.failed[0].reason == f"result.json cannot be read: {part}"


def test_an_error_of_the_report_itself_is_not_taken_for_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(content: dict[str, Any], folder: str) -> Run:
        raise TypeError("a mistake in the code")

    monkeypatch.setattr(Run, "of", mistaken)
    with pytest.raises(TypeError, match="a mistake in the code"):
        build_report(write(tmp_path, result("p30", 0.3, 0.9, 0.9)))


@pytest.mark.slow
def test_the_page_has_commands_for_a_checkout_and_for_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path, result("p30", 0.3, 0.9, 0.9)))
    write_report(tmp_path)
    assert '"command":"mmp-prune strategy=p30"' in (tmp_path / "report" / "index.html").read_text()
    (tmp_path / "prune.py").touch()
    write_report(tmp_path)
    page = (tmp_path / "report" / "index.html").read_text()
    assert '"command":"python prune.py strategy=p30"' in page
    assert '"export":"python -m mmp.export run0 target=onnx"' in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "headings"), [(80, "sparsity MB test drop sd front"), (160, "val test drop sd seeds")]
)
def test_tables_fit_the_terminal(tmp_path: Path, width: int, headings: str) -> None:
    console = Console(width=width, file=StringIO())
    write_report(full_sweep(tmp_path), console, tables=True)
    lines = console.file.getvalue().splitlines()
    assert headings in " ".join(lines[1].split())
    assert len([line for line in lines if line.split()[1:2] == ["classifier_heavy"]]) == 3
    assert max(map(len, lines[: lines.index("")])) <= width


@pytest.mark.slow
def test_a_dense_run_and_the_report_itself_are_no_results(tmp_path: Path) -> None:
    write(tmp_path, result("p30", 0.3, 0.9, 0.9), {"kind": "dense", "status": "completed"})
    write_report(tmp_path)
    assert write_report(tmp_path).counts == "1 completed, 0 failed, 0 unfinished"


HOSTILE = "<script>alert(1)</script>[bold]|*"


@pytest.mark.slow
def test_text_from_files_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = result("x", 0, 0, 0, status="failed", error={"type": "E", "message": HOSTILE})
    write(tmp_path, result(HOSTILE, 0.3, 0.9, 0.9, signal=HOSTILE, model=HOSTILE), broken)
    main([str(tmp_path)])
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in (tmp_path / "report" / "results.md").read_text()
    assert "[bold]" in capsys.readouterr().out


@pytest.mark.slow
def test_the_page_needs_no_network_and_the_picture_is_one(tmp_path: Path) -> None:
    write(
        tmp_path, *(result(f"p{i}", i / 100, 0.99 - i / 1000, 0.97, signal=s) for i in range(10, 90, 20) for s in "ab")
    )
    write_report(tmp_path)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<script src=" not in page
    assert 'rel="stylesheet"' not in page
    assert (tmp_path / "report" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in (tmp_path / "report").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1)])
def test_the_exit_code_says_whether_a_run_failed(tmp_path: Path, status: str, code: int) -> None:
    write(tmp_path, result("p30", 0.3, 0.9, 0.9, status=status))
    done = subprocess.run(
        [sys.executable, "-m", "mmp.report", str(tmp_path)], capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert done.returncode == code, done.stderr
    assert ("1 completed" if code == 0 else "1 failed") in done.stdout


def test_a_folder_without_results_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(MmpError, match=r"contains no result\.json"):
        build_report(tmp_path)
