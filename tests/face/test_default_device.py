"""Pruning does not depend on torch's default device."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from places import ROOT
from torch import nn

import mmp

FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm"}
FACTORIES |= {"asarray", "logspace", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"}
CALLS = [
    {"budget": 0.5},
    {"budget": 0.5, "signal": "obs"},
    {"budget": 0.5, "criterion": "grasp", "reconstruct": "none"},
    {"budget": 0.5, "criterion": "random"},
    {"budget": 0.5, "signal": "obs_fisher", "pattern": "2:4"},
    {"ranges": "observed", "signal": "product"},
    {"budget": 0.4, "pattern": "channels"},
]


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    parts = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*parts, nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1, generator=generator)
    return model


def pruned(given: dict[str, object], images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.device("cpu"):
        model = network()
    result = mmp.prune(model, images=images, labels=labels, **given)  # type: ignore[arg-type]
    smaller = given.get("pattern") == "channels"
    return (result.smaller() if smaller else result.model).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("given", CALLS, ids=str)
def test_another_default_device_changes_no_bit(given: dict[str, object]) -> None:
    images, labels = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(96) % 4
    expected = pruned(given, images, labels)
    with torch.device("meta"):
        found = pruned(given, images, labels)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def unnamed(path: Path) -> Iterator[str]:
    """Yield the calls in a file that create a tensor on the default device."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name)) if name in FACTORIES:
                if all(keyword.arg != "device" for keyword in node.keywords):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: torch.{name}"


def test_every_tensor_of_the_library_names_its_device() -> None:
    assert [call for path in sorted((ROOT / "mmp" / "pruning").rglob("*.py")) for call in unnamed(path)] == []
