"""The wheel: what it carries, and that its commands work in a folder that is not the checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from places import CONF, ROOT
from resources import CHROMIUM, needs
from warm import LIMIT

pytestmark = pytest.mark.slow

TRAINING = ["dense.epochs=1", "trainer.enable_progress_bar=false"]
PRUNING = [*TRAINING, "finetune.epochs=1"]

STRATEGY = "name: gentle\nposition: 0.2\n"
SIGNAL = "_target_: my_signals.Taylor\nname: taylor\n"
SIGNAL_CODE = """
class Taylor:
    name = "taylor"
    needs = frozenset({"gradient"})

    def score(self, weight, statistics):
        return (weight * statistics["gradient"]) ** 2
"""


@dataclass(frozen=True)
class Installation:
    """An environment with the installed wheel.

    Attributes:
        folder: Of the environment.
    """

    folder: Path

    def run(self, place: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's commands in a folder, as a shell without any settings for Python would."""
        programs = self.folder / "bin"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
        environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{programs}{os.pathsep}{environment['PATH']}"}
        command = (str(programs / command[0]), *command[1:])
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", ROOT, "--no-build-isolation", f"--wheel-dir={folder}")
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """An environment with the wheel and, rather than a second copy of torch, the packages of this environment.

    Paths in ``.pth`` files come after the environment's own packages, and ``.pth`` files in these paths are not read:
    the one of an editable installation, which would make the checkout importable, has no effect.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    pip("--python", folder / "bin" / "python", "install", wheel)
    (packages,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "shared.pth").write_text("\n".join(shared))
    return Installation(folder)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a strategy and a signal that the package does not have."""
    folder = tmp_path_factory.mktemp("own")
    for group, name, content in (("strategy", "gentle", STRATEGY), ("signal", "taylor", SIGNAL)):
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / f"{name}.yaml").write_text(content)
    (folder / "my_signals.py").write_text(SIGNAL_CODE)
    return folder


@pytest.fixture(scope="module")
def sweep(installed: Installation, own: Path) -> Path:
    """A sweep of two signals and two strategies, run by two workers, one signal and one strategy of the user's own."""
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    installed.run(own, "mmp-prune", "-m", *joblib, "signal=magnitude,taylor", "strategy=p30,gentle", *PRUNING)
    return own / "results" / "sweeps" / "sweep"


def completed(folder: Path) -> set[tuple[str, str]]:
    """Return signal and strategy of the completed runs below a folder."""
    results = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    return {(result["signal"], result["strategy"]) for result in results if result["status"] == "completed"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_it_carries_the_packages_and_configurations_and_nothing_else(wheel: Path) -> None:
    packages = ("mmp", "callbacks", "hydra_plugins")
    code = {path.relative_to(ROOT) for package in packages for path in (ROOT / package).rglob("*.py")}
    assets = {path.relative_to(ROOT) for path in (ROOT / "mmp/report/assets").iterdir()}
    configurations = {"mmp" / path.relative_to(ROOT) for path in CONF.rglob("*.yaml")}
    assert len(configurations) > 50
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist()}
    metadata = {path for path in names if path.parts[0].endswith(".dist-info")}
    assert names - metadata == code | assets | configurations
    assert {path.name for path in metadata} == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"}


def test_its_commands_are_those_of_the_project(installed: Installation) -> None:
    (distribution,) = importlib.metadata.distributions(
        name="mmp", path=[str(path) for path in installed.folder.glob("lib/python*/site-packages")]
    )
    assert {entry.name: entry.value for entry in distribution.entry_points} == project()["scripts"]
    assert all((installed.folder / "bin" / name).is_file() for name in project()["scripts"])


def test_the_checkout_is_not_behind_it(installed: Installation, tmp_path: Path) -> None:
    code = """
import importlib.metadata, importlib.util, sys, mmp, callbacks
for entry in importlib.metadata.distribution("mmp").entry_points:
    entry.load()
print(mmp.__file__, callbacks.__file__, sep="\\n")
print(*(importlib.util.find_spec(name) for name in ("tests", "benchmarks", "prune")))
print(*sys.path, sep="\\n")
"""
    *files, others, path = installed.run(tmp_path, "python", "-c", code).stdout.split("\n", 3)
    assert all(Path(file).is_relative_to(installed.folder) for file in files)
    assert others == "None None None"
    assert str(ROOT) not in path.splitlines()


def test_the_commands_work_in_an_empty_folder(installed: Installation, tmp_path: Path) -> None:
    assert "classifier_heavy" in installed.run(tmp_path, "mmp-plan", "model=vit").stdout
    assert not list(tmp_path.iterdir())
    installed.run(tmp_path, "mmp-train", "model=cnn", *TRAINING)
    installed.run(tmp_path, "mmp-prune", "model=vit", *PRUNING)
    assert completed(tmp_path / "results" / "runs") == {("magnitude", "balanced")}
    installed.run(tmp_path, "mmp-prune", "-m", "signal=magnitude,product", "strategy=glob(*_heavy)", *PRUNING)
    assert len(completed(tmp_path / "results" / "sweeps" / "sweep")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_workers_find_the_users_own_configurations_and_code(sweep: Path) -> None:
    assert completed(sweep) == {(signal, name) for signal in ("magnitude", "taylor") for name in ("p30", "gentle")}


def test_jobs_of_submitit_find_them_too(installed: Installation, own: Path, tmp_path: Path) -> None:
    words = ["hydra/launcher=submitit_local", "signal=taylor", "strategy=gentle", f"paths.results={tmp_path}"]
    installed.run(own, "mmp-prune", "-m", *words, *PRUNING)
    assert completed(tmp_path / "sweeps" / "sweep") == {("taylor", "gentle")}


def test_its_report_is_written(installed: Installation, sweep: Path) -> None:
    page = sweep / "report" / "index.html"
    page.unlink()
    assert "taylor" in installed.run(sweep.parent, "mmp-report", "sweep").stdout
    assert page.stat().st_size > 10_000
    assert "taylor/gentle" in page.read_text()


@needs("browser")
def test_its_report_opens_in_a_browser(sweep: Path) -> None:
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # CI runs as root
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto((sweep / "report" / "index.html").as_uri())
        page.get_by_text("taylor/gentle").first.wait_for()
        browser.close()
    assert problems == []


def test_its_runs_are_exported(installed: Installation, sweep: Path) -> None:
    installed.run(
        sweep.parent, "mmp-export", "sweep", "target=sparse", "select=signal=taylor,strategy=gentle", "seconds=0"
    )
    (file,) = sweep.glob("*/export/sparse/model.sparse.safetensors")
    assert "taylor-gentle" in str(file)
