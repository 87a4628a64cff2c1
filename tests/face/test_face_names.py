"""The names of the package: each leads to its object, and none is imported before it is used."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

import mmp

FACE = Path(mmp.__file__)


def seen_by_type_checkers() -> Iterator[tuple[str, str]]:
    """Yield module and name of every import in the block ``if TYPE_CHECKING``."""
    for node in ast.parse(FACE.read_text()).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                assert statement.module is not None
                if statement.module != "typing":
                    yield from ((statement.module, name.name) for name in statement.names)


def imported(code: str) -> set[str]:
    """Return the modules that a fresh process has imported after some code."""
    code += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_every_name_is_the_object_that_type_checkers_see() -> None:
    block = list(seen_by_type_checkers())
    assert sorted(name for _, name in block) == sorted(mmp.__all__)
    for module, name in block:
        assert getattr(mmp, name) is getattr(importlib.import_module(module), name)


def test_objects_are_imported_from_the_modules_that_define_them() -> None:
    for module, name in seen_by_type_checkers():
        assert getattr(mmp, name).__module__ == module


def test_all_names_can_be_listed_and_imported_together() -> None:
    names: dict[str, object] = {}
    exec("from mmp import *", names)
    assert set(mmp.__all__) == names.keys() - {"__builtins__"}
    assert set(mmp.__all__) <= set(dir(mmp))


def test_every_public_object_has_a_docstring() -> None:
    assert [name for name in mmp.__all__ if not (getattr(mmp, name).__doc__ or "").strip()] == []


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"module 'mmp' has no attribute 'make_mask'; did you mean 'make_masks'"):
        _ = mmp.make_mask
    assert not hasattr(mmp, "train")


def test_no_name_hides_a_module_of_the_package() -> None:
    modules = {path.stem for path in FACE.parent.iterdir()}
    assert not modules & set(mmp.__all__)


def test_the_version_is_a_literal_that_the_build_reads() -> None:
    found = re.search(r'^__version__ = "(\d+\.\d+\.\d+)"$', FACE.read_text(), re.MULTILINE)
    assert found
    assert found.group(1) == mmp.__version__


@pytest.mark.slow
def test_importing_the_package_imports_nothing_else() -> None:
    modules = imported("import mmp")
    assert not modules & {"torch", "numpy", "hydra", "omegaconf", "typing", "mmp.errors"}


@pytest.mark.slow
def test_pruning_imports_none_of_the_frameworks_around_it() -> None:
    modules = imported(
        """
import mmp, torch
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
images, labels = torch.randn(64, 3, 8, 8), torch.randint(10, (64,))
print(mmp.prune(model, images=images, labels=labels, signal="product", ranges="observed", reconstruct="least_squares"))
for _, result in mmp.prune_all(model, 0.3, images, signal="obs", strategies=["p30", "p70"]):
    print(result)
print(mmp.prune(model, 0.5, criterion="lamp"))
"""
    )
    assert "torch" in modules
    assert not modules & {
        "hydra", "pytorch_lightning", "lightning", "wandb", "timm", "torchmetrics", "torchvision", "sklearn", "rich",
        "matplotlib", "plotly",
    }  # fmt: skip
