"""What one import brings along: the library imports no framework, the report and the ground no torch."""

from __future__ import annotations

import gc
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from warm import LIMIT

import mmp.report
from mmp.imports import import_once

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


@pytest.mark.slow
def test_no_module_of_the_report_imports_torch() -> None:
    modules = [name for _, name, _ in pkgutil.iter_modules(mmp.report.__path__, "mmp.report.")]
    assert {"mmp.report.__main__", "mmp.report.wandb_summary"} <= set(modules)
    assert not imported_by(f"import {', '.join(modules)}") & ({"torch"} | FRAMEWORKS)


def test_the_ground_imports_no_torch() -> None:
    modules = [
        f"mmp.{name}"
        for name in ("errors", "markdown", "cgroups", "openmp", "machine", "files", "workspace", "imports")
    ]
    assert not imported_by(f"import {', '.join(modules)}") & ({"torch"} | FRAMEWORKS)


def test_a_module_is_imported_without_searches_for_garbage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asks.py").write_text("import gc\ncollects, kept = gc.isenabled(), []\n")
    (tmp_path / "fails.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    frozen: list[bool] = []
    module = import_once("asks")
    assert not module.collects
    assert gc.isenabled()
    assert import_once("asks") is module
    assert frozen == [True]
    with pytest.raises(ZeroDivisionError):
        import_once("fails")
    assert gc.isenabled()
    gc.disable()
    try:
        sys.modules.pop("asks")
        import_once.cache_clear()
        import_once("asks")
        assert not gc.isenabled()
    finally:
        gc.enable()
        sys.modules.pop("asks")
