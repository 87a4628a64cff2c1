"""The GPU measurements without a GPU: rows, tables, groups of parts, and parts that crash, hang or are skipped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from benchmarks import RESULTS, gpu
from benchmarks.gpu_figures import Figure, Part, Setting, between, exactly
from benchmarks.gpu_parts import PARTS, TOGETHER
from benchmarks.gpu_studies import CAMPAIGNS
from benchmarks.oneshot_request import Request
from benchmarks.study import wanted_of
from benchmarks.timing import Claim

PROGRAMS = {"crashes": "print('first'); raise SystemExit('no luck')", "hangs": "import time; time.sleep(60)"}


def row(figure: Figure, part: str = "tests", date: str = "2030-01-01T00:00:00+00:00", dry: bool = False) -> dict:
    origin = {"device": "a GPU", "torch": "2.0", "commit": "abc", "date": date, "dry_run": dry}
    return {"part": part, **asdict(figure), **origin}


def wanted(words: list[str]) -> list[dict]:
    return list(wanted_of(dict(word.split("=", 1) for word in words)))


def lines(table: str) -> list[str]:
    return table.splitlines()[2:]


def nothing(_: Setting) -> Iterator[Figure]:
    yield from ()


@pytest.mark.parametrize(
    ("figure", "line"),
    [
        (
            gpu.outcome_of("skipped: no time left"),
            "| outcome | completed | 0 s |  | **miss** | skipped: no time left |",
        ),
        (
            gpu.outcome_of("stopped at its limit of 60 s", 60.04),
            "| outcome | completed | 60 s |  | **miss** | stopped at its limit of 60 s |",
        ),
        (gpu.outcome_of("completed", 2.34), "| outcome | completed | 2.3 s |  | pass | completed |"),
        (Figure("time", 2.5, "s", note="two runs"), "| time |  | 2.5 s |  |  | two runs |"),
        (Figure.of(Claim("slower", [1.0, 3.0, 2.0], most=1.5)), "| slower | at most 1.5 | 2 | 1 to 3 | **miss** |  |"),
        (Figure.of(Claim("slower", [1.0], most=1.5)), "| slower | at most 1.5 | 1 |  | pass |  |"),
        (between("loss", 1.5, 0.9, 1.1), "| loss | 0.9 to 1.1 | 1.5 |  | **miss** |  |"),
        (exactly("bits", 0.9999953, 1, "share"), "| bits | exactly 1 | 0.999995 |  | **miss** |  |"),
    ],
)
def test_each_kind_of_row_has_its_line(figure: Figure, line: str) -> None:
    assert lines(gpu.table([row(figure)])) == [line]


def test_the_latest_row_of_each_part_and_name_is_shown() -> None:
    rows = [
        row(Figure("time", 1.0, "s"), "scores"),
        row(Figure("time", 5.0, "s"), "tests"),
        row(Figure("time", 2.0, "s"), "scores", date="2030-01-02T00:00:00+00:00"),
    ]
    tests, scores, *origins = gpu.tables(rows).split("\n\n")
    assert tests.startswith("### tests\n")
    assert lines(tests.partition("\n")[2]) == ["| time |  | 5 s |  |  |  |"]
    assert lines(scores.partition("\n")[2]) == ["| time |  | 2 s |  |  |  |"]
    assert {origin[-10:] for origin in origins} == {"2030-01-01", "2030-01-02"}


def test_parts_run_together_only_if_they_measure_no_time() -> None:
    assert gpu.groups_of(["stacked", "masks", "scores", "tests"]) == [["tests", "masks"], ["scores"], ["stacked"]]
    groups = gpu.groups_of(list(PARTS))
    assert [name for group in groups for name in group] == list(PARTS)
    assert all(len(group) == 1 or set(group) <= set(TOGETHER[0]) for group in groups)


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """Run four small parts: one crashes, one hangs, one has no data, and one completes."""
    left = Figure("left on disk", 1, "runs")
    parts = {
        "crashes": Part(nothing, 60),
        "hangs": Part(nothing, 1, gather=lambda _: [left]),
        "skipped": Part(nothing, 60, needs="gtsrb"),
        "works": Part(nothing, 60),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "TOGETHER", (("hangs", "works"),))
    monkeypatch.setattr(gpu, "command_of", lambda name, *_: [sys.executable, "-c", PROGRAMS.get(name, "")])
    rows = gpu.Rows(tmp_path / "results" / "gpu.jsonl", "abc")
    failed = [running.name for running in gpu.run_all(list(parts), Setting(tmp_path, tmp_path, True), rows, 2.0)]
    written = rows.read()
    assert gpu.table(written)
    return failed, {name: [one for one in written if one["part"] == name] for name in parts}


def test_each_part_leaves_its_outcome_and_the_others_run(ended) -> None:
    failed, rows = ended
    assert failed == ["crashes", "hangs"]
    notes = {name: of_part[-1]["note"] for name, of_part in rows.items()}
    assert notes == {
        "crashes": "failed with exit code 1: no luck",
        "hangs": "stopped at its limit of 1 s",
        "skipped": "skipped: no gtsrb in the data folder",
        "works": "completed",
    }
    assert {name: of_part[-1]["holds"] for name, of_part in rows.items()} == {
        "crashes": False,
        "hangs": False,
        "skipped": False,
        "works": True,
    }
    assert all(of_part[-1]["name"] == "outcome" and of_part[-1]["low"] is None for of_part in rows.values())
    assert [one["name"] for one in rows["hangs"]] == ["left on disk", "outcome"]


def test_parts_are_skipped_when_the_time_is_up(tmp_path: Path) -> None:
    rows = gpu.Rows(tmp_path / "gpu.jsonl", "abc")
    assert not list(gpu.run_all(["scores", "stacked"], Setting(tmp_path, tmp_path, True), rows, 0.0))
    assert [(one["part"], one["note"]) for one in rows.read()] == [
        ("scores", "skipped: no time left"),
        ("stacked", "skipped: no time left"),
    ]


def test_the_page_has_the_tables_of_the_committed_rows() -> None:
    rows = [json.loads(line) for line in (RESULTS / "gpu.jsonl").read_text().splitlines()]
    assert gpu.tables(rows) in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["channels", "joint"])
def test_a_small_part_reaches_its_targets_without_a_gpu(part: str, tmp_path: Path) -> None:
    figures = list(PARTS[part].measure(Setting(tmp_path, tmp_path, dry=True)))
    assert len(figures) == 5
    assert all(figure.holds for figure in figures)


def test_show_prints_the_measured_rows_without_dry_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(Figure("time", 1.0, "s")), row(Figure("time", 9.0, "s"), dry=True)]
    (tmp_path / "gpu.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    monkeypatch.setattr(sys, "argv", ["gpu", "--show", "--results", str(tmp_path / "gpu.jsonl")])
    gpu.main()
    assert capsys.readouterr().out == gpu.tables(rows[:1]) + "\n"


@pytest.mark.parametrize(("benchmark", "read"), [("oneshot", Request.of), ("study", wanted)])
def test_the_benchmarks_know_the_words_of_their_campaigns(benchmark: str, read: Callable[[list[str]], object]) -> None:
    campaign = CAMPAIGNS[benchmark]
    for stage in (*campaign.stages, *campaign.dry):
        read([*stage, "checkpoint=a.safetensors", "root=data", "share=1/15", "rows=rows.jsonl", "cache=cache"])
