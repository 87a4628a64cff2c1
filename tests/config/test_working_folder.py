"""A user's own ``conf/`` and modules in the working folder, without a change to the installation."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import warm
from places import CONF, ROOT
from safetensors.torch import load_file

from mmp.config.command import with_users_folder
from mmp.errors import MmpError

FILES = {
    "conf/strategy/mine.yaml": "name: mine\nposition: 0.42\n",
    "conf/signal/mine.yaml": "_target_: my_signals.Mine\nname: mine\n",
    "conf/model/m.yaml": "defaults:\n  - cnn\n  - _self_\nlabel: m\n",
    "conf/experiment/e.yaml": "# @package _global_\ndefaults:\n  - override /model: m\nseed: 5\n",
    "my_signals.py": (
        "class Mine:\n"
        "    name, needs = 'mine', frozenset()\n"
        "    def score(self, weight, statistics):\n"
        "        return -weight.abs()\n"  # the largest weights are pruned, as by no signal of ours
    ),
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, FILES)


# --- the command line ---


def test_the_conf_of_the_working_folder_is_added(folder: Path) -> None:
    assert with_users_folder(["seed=1"]) == (Path("conf"), ["--config-dir", str(folder / "conf"), "seed=1"])


@pytest.mark.parametrize("option", [["--config-dir=other"], ["--config-dir", "other"], ["-cd", "other"]], ids=str)
def test_a_folder_on_the_command_line_takes_its_place(option: list[str], folder: Path) -> None:
    write(folder, {"other/strategy/theirs.yaml": "name: theirs\n"})
    assert with_users_folder(["seed=1", *option]) == (Path("other"), ["seed=1", *option])


def test_other_configurations_than_ours_are_not_extended(folder: Path) -> None:
    assert with_users_folder([f"--config-path={CONF}"]) == (None, [f"--config-path={CONF}"])


def test_nothing_is_added_in_a_checkout_or_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (ROOT, tmp_path):
        monkeypatch.chdir(place)
        assert with_users_folder(["seed=1"]) == (None, ["seed=1"])
    (tmp_path / "conf").symlink_to(CONF)
    assert with_users_folder(["seed=1"]) == (None, ["seed=1"])


def test_a_folder_that_cannot_be_used_is_named(folder: Path) -> None:
    with pytest.raises(MmpError, match="--config-dir=nowhere: no such folder"):
        with_users_folder(["--config-dir", "nowhere"])
    (folder / "conf" / "strategy" / "latin.yaml").write_bytes("name: für\n".encode("latin-1"))
    with pytest.raises(MmpError, match=r"conf/strategy/latin\.yaml: not UTF-8"):
        with_users_folder([])


def test_a_file_with_the_name_of_one_of_ours_is_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = folder / "conf" / "strategy" / "p50.yaml"
    copy.write_bytes((CONF / "strategy" / "p50.yaml").read_bytes())
    with_users_folder([])
    assert capsys.readouterr().err == ""
    copy.write_text("name: p50\nposition: 0.51\n")
    with_users_folder([])
    assert capsys.readouterr().err.startswith("warning: conf/strategy/p50.yaml: not used")


# --- commands in that folder ---


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return warm.run([*arguments], environment, folder)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_plan_knows_the_users_choices(folder: Path) -> None:
    done = command("-m", "mmp.plan", "strategy=mine", "experiment=e", "format=json", folder=folder)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["model"] == "m"
    strategies = {name: found["sparsity"] for name, found in plan["strategies"].items()}
    assert strategies["p30"] < strategies["mine"] < strategies["p50"]
    assert {path.name for path in folder.iterdir()} == {"conf", "my_signals.py"}


@pytest.mark.slow
def test_a_sweep_prunes_with_the_users_strategy_and_signal(folder: Path) -> None:
    done = command(
        str(ROOT / "prune.py"), "-m", "strategy=glob(*,exclude=[a*,b*,c*,f*,p*])", "signal=mine", "experiment=e",
        "dense.epochs=1", "dense.warmup_epochs=0", "finetune=none", "paths.results=out", folder=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "out" / "sweeps" / "sweep").glob("*/result.json")
    result = json.loads(path.read_text())
    assert (result["model"], result["strategy"], result["signal"], result["seed"]) == ("m", "mine", "mine", 5)
    (file,) = (folder / "out" / "cache" / "dense").glob("m-*.safetensors")
    dense, pruned = load_file(file), load_file(path.with_name("model.safetensors"))
    for layer in result["layers"]:
        assert layer["sparsity"] == pytest.approx(layer["lo"] + 0.42 * (layer["hi"] - layer["lo"]))
        weight, gone = dense[layer["name"]].abs(), pruned[layer["name"]] == 0
        if layer["pruned"]:
            assert weight[gone].min() >= weight[~gone].max()
    assert torch.equal(dense["bn1.weight"], pruned["bn1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        ("strategy=mnie", "strategy=mnie: no such choice; did you mean 'mine'?"),
        ("signal=mien", "signal=mien: no such choice; did you mean 'mine'?"),
        ("experiment=f", "choose from: channels, demo, e, paper/"),
    ],
)
def test_a_typo_is_answered_with_the_users_choices(mistake: str, hint: str, folder: Path) -> None:
    assert hint in error_of(command(str(ROOT / "prune.py"), mistake, folder=folder))


@pytest.mark.slow
def test_a_typo_is_answered_with_the_choices_of_the_folder_on_the_command_line(folder: Path) -> None:
    write(folder, {"other/experiment/deep/theirs.yaml": "# @package _global_\nseed: 1\n"})
    arguments = ["--config-dir", "other", "experiment=deep/theirz"]
    line = error_of(command(str(ROOT / "prune.py"), *arguments, folder=folder))
    assert "did you mean 'deep/theirs'?" in line
    assert ", e," not in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: [broken\n", "conf/strategy/broken.yaml, line 2: not valid YAML"),
        ("- broken\n", "strategy=broken: the file must contain keys"),
        ("position: 0.4\n", "strategy: a file with the keys position has no name"),
        ("name: broken\nposiion: 0.4\n", "strategy=broken: posiion: no such key; did you mean 'position'?"),
        ("name: broken\nposition: 4\n", "strategy=broken: position is 4"),
    ],
)
def test_a_broken_file_is_named(text: str, reason: str, folder: Path) -> None:
    write(folder, {"conf/strategy/broken.yaml": text})
    assert reason in error_of(command("-m", "mmp.plan", folder=folder))


@pytest.mark.slow
def test_a_class_that_cannot_be_imported_is_named(folder: Path) -> None:
    (folder / "my_signals.py").rename(folder / "moved.py")
    line = error_of(command(str(ROOT / "prune.py"), "signal=mine", "paths.results=out", folder=folder))
    assert "signal._target_=my_signals.Mine: cannot be imported (No module named 'my_signals')" in line
