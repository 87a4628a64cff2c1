"""Commands and workers bound the spin of OpenMP's threads before anything loads its runtime; the library does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from places import ROOT
from warm import LIMIT

from mmp.openmp import bound_spin

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
ARGUMENTS = {
    "mmp-prune": ["model=cnn", "data=digits"],
    "mmp-train": ["model=cnn", "data=digits"],
    "mmp-plan": ["model=cnn"],
    "mmp-report": ["missing"],
    "mmp-export": ["missing", "target=sparse"],
    "mmp-workspace": ["me", "--dry-run"],
}
# Prints the settings where a package with an OpenMP runtime is first imported, or at the end, and stops there.
WATCH = """
import atexit, os, runpy, sys

class Watch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("torch", "sklearn"):
            show(f"before {name}")
            os._exit(0)

def show(where="at the end"):
    print("settings", where, os.environ.get("GOMP_SPINCOUNT"), os.environ.get("KMP_BLOCKTIME"), flush=True)

sys.meta_path.insert(0, Watch)
atexit.register(show)
"""
# Two threads that wait for each other at every operation.
TRAIN = """
import hashlib, torch
torch.set_num_threads(2)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Flatten(), torch.nn.Linear(16 * 900, 10))
optimizer = torch.optim.Adam(model.parameters())
for _ in range(5):
    optimizer.zero_grad()
    model(torch.randn(64, 3, 32, 32)).square().mean().backward()
    optimizer.step()
print(hashlib.sha256(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().tobytes()).hexdigest())
"""


def run(*arguments: str, folder: Path = ROOT, **settings: str) -> str:
    """Return the output of ``python ARGUMENT...`` without any setting of the spin, except the given ones."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"PYTHONPATH": str(ROOT), **settings}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    return done.stdout + done.stderr


def found(output: str) -> list[tuple[str, str]]:
    return re.findall(r"^settings (?:before \w+|at the end) (\S+) (\S+)$", output, re.MULTILINE)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_setting_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "7")
    bound_spin()
    assert {variable: os.environ[variable] for variable in VARIABLES if variable in os.environ} == {name: "7"}


@pytest.mark.slow
@pytest.mark.parametrize("command", SCRIPTS)
def test_every_installed_command_bounds_the_spin(tmp_path: Path, command: str) -> None:
    module, function = SCRIPTS[command].split(":")
    output = run("-c", f"{WATCH}from {module} import {function}; {function}()", *ARGUMENTS[command], folder=tmp_path)
    assert found(output) == [("1000", "1")], output


@pytest.mark.slow
@pytest.mark.parametrize("command", SCRIPTS)
def test_every_script_and_module_bounds_the_spin(tmp_path: Path, command: str) -> None:
    name = command.removeprefix("mmp-")
    script = ROOT / f"{name}.py"
    start = f"run_path({str(script)!r}" if script.is_file() else f"run_module('mmp.{name}'"
    output = run("-c", f"{WATCH}runpy.{start}, run_name='__main__')", *ARGUMENTS[command], folder=tmp_path)
    assert found(output) == [("1000", "1")], output


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        "from hydra_plugins.mmp_launchers import import_jobs; import_jobs()",
        "from hydra_plugins.mmp_launchers import run_composed; run_composed(None, lambda _: None, None, None, {})",
        "import pickle; from hydra_plugins.mmp_launchers import Slurm; pickle.loads(pickle.dumps(Slurm()))",
    ],
)
def test_every_worker_process_bounds_the_spin(start: str) -> None:
    output = run("-c", WATCH + start)
    assert found(output) == [("1000", "1")], output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oneshot", "study", "short_training", "crowded"])
def test_every_benchmark_bounds_the_spin(name: str) -> None:
    output = run("-c", f"{WATCH}import benchmarks.{name}")
    assert found(output) == [("1000", "1")], output


@pytest.mark.slow
def test_the_library_leaves_the_environment_of_a_process_alone() -> None:
    shown = "import os; before = dict(os.environ); import mmp; mmp.make_plan, mmp.prune; print(before == os.environ)"
    assert run("-c", shown) == "True\n"


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77")])
def test_the_runtime_has_read_the_setting(settings: dict[str, str], expected: str) -> None:
    output = run("-m", "mmp.plan", "model=cnn", OMP_DISPLAY_ENV="verbose", **settings)
    counts = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", output)
    if "OPENMP DISPLAY ENVIRONMENT" not in output or not counts:
        pytest.skip("this torch brings another OpenMP runtime than GNU's")
    assert set(counts) == {expected}


@pytest.mark.slow
def test_the_setting_changes_no_bit_of_a_training() -> None:
    before, after = run("-c", TRAIN), run("-c", "from mmp.openmp import bound_spin; bound_spin()\n" + TRAIN)
    assert len(before) == 65
    assert before == after
