"""The numbers by which a dashboard compares runs."""

from __future__ import annotations

from typing import Any

from result_files import channel_result, result

from mmp.runs.result import summarise

LAYERS = [{"name": "a.weight", "pruned": 16, "total": 64}, {"name": "b.weight", "pruned": 0, "total": 2}]
HEAD = {"criterion": None, "layers": LAYERS}


def summary_of(content: dict[str, Any]) -> dict[str, Any]:
    return summarise({**content, **HEAD})


def test_a_run_of_whole_channels_has_what_its_smaller_network_has() -> None:
    summary = summary_of(channel_result("p50", 0.4, 0.96, 0.95))
    assert (summary["sparsity_all"], summary["parameters_left"], summary["multiply_adds"]) == (0.4, 600, 0.8)
    assert summary["size_mb"] == 2.4


def test_sparsities_of_groups_are_shares_of_their_sets() -> None:
    summary = summary_of(channel_result("p50", 0.4, 0.96, 0.95))
    assert {key: value for key, value in summary.items() if key.startswith("sparsity/")} == {
        "sparsity/a.weight": 0.25,
        "sparsity/b.weight": 0.0,
    }


def test_other_runs_have_the_same_numbers_as_before() -> None:
    new = {"parameters_left", "multiply_adds"}
    summary = summary_of(result("p50", 0.4, 0.96, 0.95))
    assert not new & summary.keys()
    assert summary_of(channel_result("p50", 0.4, 0.96, 0.95)).keys() == summary.keys() | new
