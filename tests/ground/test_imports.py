"""What one import brings along: the library imports no framework, the report and the ground no torch."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest
from warm import LIMIT

import mmp.report

FRAMEWORKS = {"hydra", "pytorch_lightning", "wandb", "timm"}


def imported_by(statement: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has imported after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT)
    return set(json.loads(done.stdout))


@pytest.mark.slow
def test_a_plan_needs_no_framework() -> None:
    imported = imported_by("from mmp.plan import make_plan")
    assert "torch" in imported
    assert not imported & FRAMEWORKS


def test_no_module_of_the_report_imports_torch() -> None:
    modules = [name for _, name, _ in pkgutil.iter_modules(mmp.report.__path__, "mmp.report.")]
    assert {"mmp.report.__main__", "mmp.report.wandb_summary"} <= set(modules)
    assert not imported_by(f"import {', '.join(modules)}") & ({"torch"} | FRAMEWORKS)


def test_the_ground_imports_no_torch() -> None:
    modules = [f"mmp.{name}" for name in ("errors", "markdown", "cgroups", "openmp", "machine", "files", "workspace")]
    assert not imported_by(f"import {', '.join(modules)}") & ({"torch"} | FRAMEWORKS)
