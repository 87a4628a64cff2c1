"""The one-shot benchmark: its command line, its files of rows, and what it measures again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import oneshot
from benchmarks.oneshot import main
from benchmarks.oneshot_networks import NETWORKS, Network
from benchmarks.oneshot_request import KEYS, Request
from benchmarks.row_files import append, read_rows
from mmp.data.module import ImageData
from mmp.errors import MmpError
from tests.helpers.oneshot_rows import row

GIVEN = ["network=resnet20", "checkpoint=a.pth", "root=data"]


def test_a_request_has_all_methods_and_all_pictures_unless_it_names_some() -> None:
    every = Request.of(GIVEN)
    assert (every.images, every.steps, every.seeds) == ([3000], (None,), [0, 1, 2])
    assert len(every.methods) == 16
    some = Request.of([*GIVEN, "seeds=1", "methods=LAMP+obs", "images=128,256", "steps=50", "rows=here.jsonl"])
    assert (some.seeds, some.methods, some.images, some.steps) == ([1], ["LAMP", "obs"], [128, 256], [50])
    assert some.rows == Path("here.jsonl")
    assert Request.of(["network=efficientnet_lite0", *GIVEN[1:]]).sparsities == [0.5, 0.7]


@pytest.mark.parametrize(
    "words",
    [
        GIVEN[:2], [*GIVEN, "seeds=7"], [*GIVEN, "speed=1"], ["network=vgg", *GIVEN[1:]], [*GIVEN, "images=99"],
        [*GIVEN, "methods=LAMP,obs"], [*GIVEN, "solved="], ["network=efficientnet_lite0", *GIVEN[1:], "sparsities=0.9"],
    ],
)  # fmt: skip
def test_a_request_names_what_is_wrong(words: list[str]) -> None:
    with pytest.raises(MmpError, match=r"network=resnet20\|"):
        Request.of(words)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The benchmark's file of rows, in a temporary folder."""
    monkeypatch.setattr(oneshot, "ROWS", tmp_path / "rows.jsonl")
    return tmp_path / "rows.jsonl"


def test_rows_are_appended_one_by_one_so_that_a_stopped_process_loses_its_current_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows_of(*_: Any) -> Iterator[dict[str, Any]]:
        yield row("LAMP", 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(oneshot, "rows_of", rows_of)
    with pytest.raises(KeyboardInterrupt):
        main(["measure", *GIVEN, f"rows={here}"])
    assert read_rows([here], KEYS) == [row("LAMP", 0)]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The settings of the runs, which are not made; the network is a CNN for digits."""
    made: list[list[str]] = []

    def result_of(settings: list[str], data: ImageData) -> dict[str, Any]:
        made.append([*settings, str(data.samples["calibration"])])
        assert sum(len(images) for images, _ in data.calibration_dataloader()) == data.samples["calibration"]
        return {
            "sparsity": 0.9, "accuracy": {}, "masks_hash": "0" * 64, "reconstruction": {}, "search": None,
            "scores": {"cached": False}, "seconds": {"total": 1.234},
        }  # fmt: skip

    monkeypatch.setattr(oneshot, "result_of", result_of)
    network = Network(("model=cnn", "data=digits", "data.calibration=0.2"), images=(64, 100), sparsities=(0.5, 0.9))
    monkeypatch.setitem(NETWORKS, "resnet20", network)
    return made


@pytest.mark.slow
def test_what_is_measured_is_skipped_and_other_numbers_of_pictures_and_steps_are_not(
    here: Path, runs: list[list[str]]
) -> None:
    words = [*GIVEN, f"rows={here}", "seeds=0", "methods=LAMP", "solved=joint"]  # only joint tuning has steps
    main(["measure", *words])
    main(["measure", *words])
    assert [run[-2:] for run in runs] == [["budget=0.5", "100"], ["budget=0.9", "100"]]
    main(["measure", *words, "sparsities=0.9", "images=64,100"])
    main(["measure", *words, "sparsities=0.9", "steps=50", "solved=layer-wise,joint"])
    assert [run[-1] for run in runs[2:]] == ["64", "100"]
    assert "reconstruct.tuning.steps=50" in runs[3]
    rows = read_rows([here], KEYS)
    assert [(r["images"], r["steps"], r["sparsity"]) for r in rows] == [
        (100, None, 0.5), (100, None, 0.9), (64, None, 0.9), (100, 50, 0.9),
    ]  # fmt: skip
    assert all(r["device"] and r["torch"] and r["threads"] for r in rows)


@pytest.mark.slow
def test_processes_share_the_runs_without_overlap(here: Path, runs: list[list[str]]) -> None:
    words = [*GIVEN, f"rows={here}", "seeds=0", "methods=LAMP+ERK+MAG", "solved=layer-wise"]
    for share in ("0/2", "1/2"):
        main(["measure", *words, f"share={share}"])
    found = [(r["method"], r["sparsity"]) for r in read_rows([here], KEYS)]
    assert len(runs) == len(set(found)) == 6
    for share in ("2/2", "half", "-1/2"):
        with pytest.raises(MmpError, match=f"share={share}"):
            main(["measure", *words, f"share={share}"])


@pytest.mark.slow
def test_rows_of_the_committed_file_are_not_measured_into_another_one(
    here: Path, runs: list[list[str]], tmp_path: Path
) -> None:
    words = [*GIVEN, "seeds=0", "methods=LAMP", "solved=layer-wise"]
    main(["measure", *words, f"rows={here}"])
    main(["measure", *[*words[:2], "root=elsewhere", *words[3:]], f"rows={tmp_path / 'other.jsonl'}"])
    assert len(runs) == 2
    assert not (tmp_path / "other.jsonl").exists()


def test_merge_adds_the_rows_of_other_machines_once(here: Path, tmp_path: Path) -> None:
    append(here, [row("LAMP", 0)])
    other = tmp_path / "other.jsonl"
    append(other, [row("LAMP", 0), row("obs", 0)])
    main(["merge", str(other)])
    main(["merge", str(other)])
    assert [json.loads(line)["method"] for line in here.read_text().splitlines()] == ["LAMP", "obs"]
    with pytest.raises(MmpError, match="no such file of rows"):
        main(["merge", str(tmp_path / "nowhere.jsonl")])


def test_a_line_that_is_no_row_is_named(here: Path) -> None:
    here.write_text(json.dumps(row("LAMP", 0)) + '\n{"network": "resnet20"\n')
    with pytest.raises(MmpError, match="line 2 is no row"):
        read_rows([here], KEYS)


def test_an_unknown_command_is_refused() -> None:
    for words in ([], ["merge"], ["report", "now"]):
        with pytest.raises(MmpError, match="measure network="):
            main(words)
