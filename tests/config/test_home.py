"""``~`` in a path: the user's home folder, in commands, in files and in names of runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from composing import composed
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser

from mmp.config.home import PATHS, expand_arguments, home_path, with_home
from mmp.config.identity import identity, run_name, settings_of
from mmp.config.matching import sweep_folder
from mmp.config.schema import PlanConfig, PruneConfig
from mmp.config.validate import validate


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("data.root=~/images", "data.root=HOME/images"),
        ("data.root=~", "data.root=HOME"),
        ("+model.checkpoint=~/a.pth", "+model.checkpoint=HOME/a.pth"),
        ("model.checkpoint=~/a.pth,~/b.pth,c", "model.checkpoint=HOME/a.pth,HOME/b.pth,c"),
        ("--config-dir=~/conf", "--config-dir=HOME/conf"),
        ("data.root=images~/x", "data.root=images~/x"),
        ("data.root='~/images'", "data.root='~/images'"),
        ("data.root=~nobody.of.this.name/x", "data.root='~nobody.of.this.name/x'"),
        ("~budget.strategies", "~budget.strategies"),
        ("~logger=csv", "~logger=csv"),
        ("-m", "-m"),
    ],
)
def test_arguments_that_begin_with_the_home_folder(argument: str, expected: str, home: Path) -> None:
    assert expand_arguments([argument]) == [expected.replace("HOME", str(home))]


@pytest.mark.parametrize("name", ["my user", "o'neil", "\u00fcser", "a,b", "a(b)", "plain"])
def test_hydra_reads_any_home_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", f"/home/{name}")
    (argument,) = expand_arguments(["data.root=~/images"])
    assert OverridesParser.create().parse_override(argument).value() == f"/home/{name}/images"


@pytest.mark.slow
@pytest.mark.usefixtures("hydra")
def test_every_path_of_the_schema_is_expanded(home: Path) -> None:
    quoted = [f"{key}='~/x'" for key in PATHS if key != "picture"]
    config = validate(composed(*quoted, "criterion=lamp"), PruneConfig)
    values = [config.data.root, config.model.checkpoint, config.model.pretrained_file, config.match]
    assert [*values, config.paths.results, config.paths.cache] == [str(home / "x")] * 6
    plan = validate(composed("picture='~/x.png'", name="plan"), PlanConfig)
    assert plan.picture == str(home / "x.png")


@pytest.mark.usefixtures("hydra")
def test_a_run_has_the_same_identity_with_and_without(home: Path) -> None:
    (home / "dense.safetensors").write_bytes(b"weights")
    names, plain, validated = set(), [], []
    for folder in ("~", str(home)):
        cfg = composed(f"data.root='{folder}/images'", f"model.checkpoint='{folder}/dense.safetensors'")
        names.add(run_name(cfg))
        plain.append(identity(settings_of(cfg)))
        validated.append(identity(settings_of(validate(cfg, PruneConfig))))
    assert len(names) == 1
    assert plain[0] == plain[1]
    assert validated[0] == validated[1]
    assert plain[0]["data"]["root"] == validated[0]["data"]["root"] == str(home / "images")


@pytest.mark.usefixtures("hydra")
def test_folders_of_runs_and_sweeps_are_expanded(home: Path) -> None:
    cfg = compose("prune", ["paths.results='~/out'"], return_hydra_config=True)
    assert cfg.hydra.run.dir.startswith(f"{home}/out/runs/")
    assert cfg.hydra.sweep.dir == sweep_folder(cfg) == f"{home}/out/sweeps/sweep"
    assert sweep_folder(composed("match='~/sweep'")) == str(home / "sweep")
    dense = compose("train", ["paths.results='~/out'"], return_hydra_config=True)
    assert dense.hydra.run.dir.startswith(f"{home}/out/dense/")


def test_other_values_stay_as_they_are(home: Path) -> None:
    settings = {"data": None, "model": {"name": "~", "checkpoint": None}, "match": "a/~/b", "sweep": "~"}
    assert with_home(dict(settings)) == settings
    assert home_path("~/a") == home / "a"
    assert home_path(f"a{os.sep}~") == Path("a/~")
