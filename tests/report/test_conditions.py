"""Conditions that select runs: what each of them selects, and what is wrong with malformed ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from result_files import result, timed, write

from mmp.errors import MmpError
from mmp.report.conditions import select
from mmp.report.groups import groups_of
from mmp.report.results import load_runs
from mmp.report.timings import timings_of

ODD = {"pattern": "2:4", "ranges": "vit", "schedule": "cubic", "reconstruct": "least_squares"}


@pytest.fixture
def runs(tmp_path: Path) -> list[Any]:
    contents = [
        result("p30", 0.3, 0.990, 0.5),
        result("p50", 0.5, 0.970, 0.9),
        result("p70", 0.7, 0.980, 0.9, seed=1),
        {**result("p90", 0.9, 0.900, 0.9, model="vit"), **ODD},
        {**result("balanced", 0.5, 0.9, 0.9), "status": "failed", "error": {"type": "E", "message": "m"}},
    ]
    return load_runs(write(tmp_path, *contents))


@pytest.mark.parametrize(
    ("conditions", "chosen"),
    [
        ("all", ["p30", "p50", "p70", "p90"]),
        ("pareto", ["p30", "p70", "p90"]),
        ("drop<1.5", ["p30", "p70"]),  # on validation; on test, p30 loses most
        ("drop<=2.0001,drop>0.5", ["p50", "p70"]),
        ("size_mb<2", ["p70", "p90"]),
        ("pareto, sparsity >= 0.7", ["p70", "p90"]),
        ("accuracy>0.975", ["p30", "p70"]),
        ("model=cnn,seed!=1", ["p30", "p50"]),
        ("strategy==p50", ["p50"]),
        ("sparsity_all<0.3", ["p30"]),
        ("pattern=2:4", ["p90"]),
        ("pattern=none,ranges=generic", ["p30", "p50", "p70"]),
        ("schedule=cubic", ["p90"]),
        ("reconstruct=least_squares", ["p90"]),
    ],
)
def test_conditions(runs: list[Any], conditions: str, chosen: list[str]) -> None:
    assert sorted(run.strategy for run in select(runs, conditions)) == chosen


def test_pareto_selects_the_front_of_the_report(runs: list[Any]) -> None:
    efficient = {one.name for group in groups_of(runs) for one in group.configurations if one.efficient}
    assert {run.configuration for run in select(runs, "pareto")} == efficient


@pytest.mark.parametrize(
    ("conditions", "parts"),
    [
        ("sise_mb<5", ["sise_mb", "did you mean 'size_mb'?"]),
        ("test>0.9", ["no such field 'test'", "accuracy"]),
        ("paretto", ["paretto", "'pareto'"]),
        ("drop<low", ["drop must be compared with a number", "'low'"]),
        ("model<cnn", ["model is a name", "= or !="]),
        ("drop<1.5 or True", ["must be pareto"]),
        ("__import__('os').system('x')<1", ["must be pareto"]),
        ("", ["must be pareto"]),
        ("drop<1,,pareto", ["select=drop<1,,pareto: '' must be pareto"]),
        ("drop<nan", ["select=drop<nan: drop must be compared with a number, not with 'nan'"]),
        ("drop<-50", ["no run meets this"]),
    ],
)
def test_conditions_that_are_wrong(runs: list[Any], conditions: str, parts: list[str]) -> None:
    with pytest.raises(MmpError) as raised:
        select(runs, conditions)
    for part in parts:
        assert part in str(raised.value)


def test_a_sweep_without_a_completed_run(runs: list[Any]) -> None:
    with pytest.raises(MmpError, match="has no completed run"):
        select([run for run in runs if run.status != "completed"], "all")


@pytest.fixture
def timed_runs(tmp_path: Path, runs: list[Any]) -> list[Any]:
    """Two runs that are measured as onnx, one of them as openvino, too, and two that are not measured."""
    folders = {run.strategy: tmp_path / run.folder for run in runs}
    timed(folders["p30"], "onnx", 0.9)
    timed(folders["p50"], "onnx", 0.6)
    timed(folders["p50"], "openvino", 0.4)
    timed(folders["p70"], "onnx", 0.2, latency=[])
    timed(folders["p90"], "onnx", "fast")
    return [replace(run, timings=timings_of(folders[run.strategy])) for run in runs]


@pytest.mark.parametrize(
    ("conditions", "chosen"),
    [
        ("latency<0.95", ["p30", "p50"]),
        ("latency<0.5", ["p50"]),
        ("latency>=0.5", ["p30"]),
        ("latency!=0.5", ["p30", "p50"]),
        ("latency_onnx<0.7", ["p50"]),
        ("latency_openvino<0.5,drop<5", ["p50"]),
        ("latency<1,drop<1.5", ["p30"]),
    ],
)
def test_latency_is_that_of_the_exports(
    timed_runs: list[Any], conditions: str, chosen: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert sorted(run.strategy for run in select(timed_runs, conditions)) == chosen
    (line,) = [record.getMessage() for record in caplog.records]
    count, target = (3, "openvino") if "openvino" in conditions else (2, "onnx")
    assert line.startswith(f"{count} of 4 runs, such as ")
    assert line.endswith(f"are left out; measure it by mmp-export FOLDER target={target} select=all")


def test_other_conditions_need_no_latency(timed_runs: list[Any], caplog: Any) -> None:
    assert len(select(timed_runs, "all")) == 4
    assert not caplog.records


def test_latencies_that_nothing_has_measured(timed_runs: list[Any]) -> None:
    for conditions, part in (
        (
            "latency_onnx_int8<1",
            "no run has this latency; compare latency_onnx, latency_openvino, or measure it",
        ),
        ("latency_onnx_int8<1", "measure it by mmp-export FOLDER target=onnx_int8 select=all"),
        ("latency<fast", "latency must be compared with a number, not with 'fast'"),
        ("latency<0.1", "no run meets this"),
        ("latency", "must be pareto"),
        ("latensy<1", "did you mean 'latency'?"),
    ):
        with pytest.raises(MmpError) as raised:
            select(timed_runs, conditions)
        assert part in str(raised.value)
        assert "\n" not in str(raised.value)


def test_without_any_export_the_way_to_measure_is_named(runs: list[Any]) -> None:
    with pytest.raises(MmpError, match="latency: no run has this latency; measure it by mmp-export FOLDER target=onnx"):
        select(runs, "latency<1")


def test_the_latency_of_earlier_weights_is_none(tmp_path: Path) -> None:
    digests = {"model.safetensors": "new", "masks.safetensors": "same"}
    write(tmp_path, {**result("p30", 0.3, 0.990, 0.5), "digests": digests})
    for weights, measured in (("old", False), ("new", True)):
        timed(tmp_path / "run0", "onnx", 0.4, origin={**digests, "model.safetensors": weights})
        runs = load_runs(tmp_path)
        if measured:
            assert select(runs, "latency<0.5") == runs
        else:
            with pytest.raises(MmpError, match="no run has this latency"):
                select(runs, "latency<0.5")
