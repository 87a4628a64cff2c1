"""A mistake on the command line is reported without waiting for torch, and the library's plan needs no Hydra."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest
from warm import LIMIT

import mmp.config

HEAVY = ("torch", "pytorch_lightning", "timm", "hydra")
OF_HYDRA = {"mmp.config.command", "mmp.config.registration"}  # only commands import these two


def heavy_imports(modules: list[str]) -> str:
    """Return what a new interpreter has imported of the heavy packages after importing some modules."""
    code = f"import sys, {', '.join(modules)}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT)
    return done.stdout.strip()


@pytest.mark.slow
def test_configurations_are_read_without_hydra_and_torch() -> None:
    modules = {name for _, name, _ in pkgutil.iter_modules(mmp.config.__path__, "mmp.config.")}
    assert {"mmp.config.validate", "mmp.config.choices", "mmp.config.objects"} | OF_HYDRA <= modules
    assert heavy_imports(sorted(modules - OF_HYDRA)) == ""
    assert heavy_imports(sorted(modules)) == "hydra"
