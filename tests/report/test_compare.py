"""Comparisons of two sweeps: which runs are paired, what is left out and named, and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from result_files import full_sweep, result, write

from mmp.errors import MmpError
from mmp.report.__main__ import main
from mmp.report.compare import GroupComparison, compare
from mmp.report.content import build_report
from mmp.report.write import write_comparison

MANY = {"samples": {"train": 1000, "validation": 100, "calibration": 100, "test": 40_000}}


def compared(tmp_path: Path, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> GroupComparison:
    groups = [build_report(write(tmp_path / name, *contents)).groups for name, contents in (("a", a), ("b", b))]
    (found,) = compare(*groups)
    return found


def one(strategy: str, test: float, seed: int = 0, **changes: Any) -> dict[str, Any]:
    return result(strategy, 0.5, test, test, seed=seed, **changes)


def test_configurations_are_paired_by_name_and_seed(tmp_path: Path) -> None:
    found = compared(
        tmp_path,
        [one("p50", 0.90, 0, **MANY), one("p50", 0.80, 1, **MANY), one("p50", 0.85, 2, **MANY), one("p70", 0.5)],
        [one("p50", 0.91, 0, **MANY), one("p50", 0.812, 1, **MANY), one("p50", 0.861, 2, **MANY), one("p90", 0.5)],
    )
    (comparison,) = found.comparisons
    assert comparison.better == pytest.approx(1.1)
    assert comparison.noise == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert comparison.words == "B better"
    assert found.left_out == ("Only in A: magnitude/p70.", "Only in B: magnitude/p90.")
    assert "Mean over all configurations: B is better by +1.10 ± 0.25 points (3 seeds)." in found.summary()


def test_sweeps_that_differ_in_one_setting_throughout_are_compared(tmp_path: Path) -> None:
    found = compared(tmp_path, [one("p50", 0.9, finetune="none")], [one("p50", 0.95, finetune="strong")])
    assert [comparison.name for comparison in found.comparisons] == ["magnitude/p50"]


def test_a_setting_that_varies_within_a_sweep_is_part_of_the_name(tmp_path: Path) -> None:
    found = compared(
        tmp_path,
        [one("p50", 0.90, reconstruct="none")],
        [one("p50", 0.89, reconstruct="none"), one("p50", 0.95, reconstruct="least_squares")],
    )
    (comparison,) = found.comparisons
    assert comparison.name == "magnitude/p50 none"
    assert comparison.better == pytest.approx(-1.0)


def test_other_images_other_seeds_and_several_runs_of_a_seed_are_not_compared(tmp_path: Path) -> None:
    found = compared(
        tmp_path,
        [one("p30", 0.9, data_fingerprint="x"), one("p50", 0.9, seed=0), one("p70", 0.9)],
        [
            one("p30", 0.9, data_fingerprint="y"),
            one("p50", 0.9, seed=1),
            one("p70", 0.9),
            one("p70", 0.8),
        ],
    )
    assert found.comparisons == ()
    assert set(found.left_out) == {
        "Not compared: magnitude/p30 has different images.",
        "Not compared: magnitude/p50 has no common seed.",
        "Not compared: magnitude/p70 has several runs per seed in B.",
    }


def test_different_dense_models_are_not_compared(tmp_path: Path) -> None:
    other = one("p50", 0.9)
    other["accuracy"]["dense"]["test"] = 0.96
    found = compared(tmp_path, [one("p50", 0.9)], [other])
    assert "Not compared because of different dense models: magnitude/p50." in found.summary()
    assert not any("better" in line for line in found.summary())


def test_different_sparsities_are_not_compared(tmp_path: Path) -> None:
    found = compared(tmp_path, [result("p90", 0.9, 0.8, 0.8)], [result("p90", 0.3, 0.95, 0.95)])
    assert found.comparisons[0].words == "different sparsities"
    assert "Not compared because of different sparsities: magnitude/p90." in found.summary()
    assert not any("better" in line for line in found.summary())


def test_the_mean_is_over_the_configurations_with_all_seeds(tmp_path: Path) -> None:
    a = [one("p50", 0.90, seed, **MANY) for seed in (0, 1)] + [one("p70", 0.70, 0, **MANY)]
    b = [one("p50", 0.91 + 0.001 * seed, seed, **MANY) for seed in (0, 1)] + [one("p70", 0.90, 0, **MANY)]
    summary = compared(tmp_path, a, b).summary()
    assert any(line.startswith("Mean over the 1 with all seeds: B is better by +1.05 ±") for line in summary)


def test_the_command_writes_a_page_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = full_sweep(tmp_path / "old"), full_sweep(tmp_path / "new", signals=("magnitude",))
    assert main([str(a), str(b)]) == 0
    folder = b / "report" / "against-old"
    assert "10 configurations in both sweeps" in (folder / "comparison.md").read_text()
    assert (folder / "index.html").is_file()
    printed = " ".join(capsys.readouterr().out.split())
    assert "On test accuracy, B is better in 0, A in 0; 10 are within the noise." in printed


def test_sweeps_of_the_same_name_get_a_folder_named_by_the_path(tmp_path: Path) -> None:
    a, b = full_sweep(tmp_path / "1" / "sweep"), full_sweep(tmp_path / "2" / "sweep")
    write_comparison(a, b)
    (folder,) = (b / "report").iterdir()
    assert folder.name.endswith("-1-sweep")


def test_sweeps_without_a_common_model_are_an_error(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", one("p50", 0.9)), write(tmp_path / "b", one("p50", 0.9, model="vit"))
    with pytest.raises(MmpError, match=r"have no comparable configuration \(cnn on digits \| vit on digits\)"):
        write_comparison(a, b)


def test_models_of_only_one_sweep_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a", one("p50", 0.9), one("p50", 0.9, model="vit"))
    b = write(tmp_path / "b", one("p50", 0.9), one("p50", 0.9, model="swin"))
    assert main([str(a), str(b)]) == 0
    printed = capsys.readouterr().out
    assert "vit on digits: 0 configurations" in printed
    assert "Only A has this model and data set." in printed
    assert "swin on digits: 0 configurations" in printed


def test_a_failed_run_in_either_makes_the_command_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a", one("p50", 0.9), one("p70", 0.9, status="failed", error={"type": "E", "message": "m"}))
    b = write(tmp_path / "b", one("p50", 0.9))
    assert main([str(a), str(b)]) == 1
    assert "failed in A run1: E: m" in capsys.readouterr().out
