"""The plan of whole channels in every form: text, Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from channel_networks import build, image_of
from matplotlib.figure import Figure

from mmp import make_plan, shrink
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.plan import Plan
from mmp.pruning.plan_views import as_csv, as_markdown, draw_plan
from mmp.pruning.structure import masks_at


@cache
def plan() -> Plan:
    return make_plan(build("vit"), pattern="channels", image=image_of("vit"), budget=0.3, name="tiny")


def test_the_text_shows_groups_and_the_smaller_network() -> None:
    lines = str(plan()).splitlines()
    assert lines[0] == "tiny: 67,013 parameters, 4 groups of channels; ranges channels, budget 30 %, pattern channels"
    assert lines[2].split() == ["group", "role", "stage", "weights", "range", "(%)", "sets"]
    assert lines[3].split() == ["blocks.0.attn.qkv.weight", "attn_heads", "9,216", "0.0", "-", "40.0", "3"]
    facts = plan().summary("balanced")
    (row,) = (line.split() for line in lines if line.startswith("balanced "))
    assert row == [
        "balanced",
        f"{100 * facts['sparsity_all']:.2f}",
        f"{facts['parameters_left']:,}",
        f"{100 * facts['multiply_adds']:.2f}",
        f"{facts['bytes'] / 1e6:.2f}",
    ]
    assert "layers keep multiples of 16 channels" in str(plan())
    text = as_markdown(plan())
    assert all(f"| {name} |" in text for name in (*plan().ranges, *plan().sparsities))


def test_the_totals_are_those_of_the_smaller_network() -> None:
    network, found = build("vit"), plan().structure
    assert isinstance(found, WholeChannels)
    weights = dict(network.named_parameters())
    scores = found.sums({layer.name: weights[layer.name].detach().abs() for layer in found.weights})
    for name, mask in masks_at(found, scores, plan().sparsities["p70"]).items():
        weights[name].data[~mask] = 0
    smaller, removal = shrink(network, image_of("vit", 2))
    facts = plan().summary("p70")
    assert not removal.kept
    assert (
        sum(p.numel() for p in smaller.parameters())
        == facts["parameters_left"]
        == plan().parameters - plan().pruned["p70"]
    )
    assert sum(p.numel() * p.element_size() for p in smaller.state_dict().values()) == facts["bytes"]
    assert facts["sparsity_all"] == 1 - facts["parameters_left"] / plan().parameters >= 0.3


def test_csv_and_json_have_a_row_for_each_group() -> None:
    rows = list(csv.DictReader(as_csv(plan()).splitlines()))
    layers = plan().layers
    assert [(row["group"], row["role"], int(row["sets"])) for row in rows] == [
        (x.name, x.role, x.shape[0]) for x in layers
    ]
    assert [(float(row["lo"]), float(row["hi"])) for row in rows[:2]] == [(0.0, 0.4), (0.3, 0.8)]
    for name, sparsities in plan().sparsities.items():
        assert [float(row[name]) for row in rows] == list(sparsities.values())
    content: dict[str, Any] = plan().to_dict()
    assert content["pattern"] == "channels"
    assert [layer["name"] for layer in content["layers"]] == [layer.name for layer in layers]
    for name, strategy in content["strategies"].items():
        assert strategy == {**plan().summary(name), "layers": plan().sparsities[name]}


@pytest.mark.slow
def test_the_picture_shows_what_the_budget_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: drawn.append(self) or save(self, *a, **k))
    draw_plan(plan(), tmp_path / "plan.png")
    left, right, bar = drawn[0].axes
    headings = dict(label.get_text().split("\n") for label in right.get_xticklabels())
    assert headings == {name: f"{100 * plan().summary(name)['sparsity_all']:.1f} %" for name in plan().sparsities}
    assert left.get_xlabel() == "channels that may be removed (%)"
    assert bar.get_ylabel() == "channels removed (%)"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"]
