"""A stranger's network by the command line: trained, pruned from a checkpoint, exported, and repeated from the card."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import warm
from places import ROOT
from safetensors.torch import load_file
from torch import Tensor, nn

from mmp import load_shrunk
from mmp.data.module import ImageData
from mmp.errors import MmpError
from mmp.export.source import load_config
from mmp.tensors import load_tensors

pytestmark = pytest.mark.slow

MODEL = """
defaults: [own, _self_]
_target_: stranger.ResNet
kwargs: {width: 16}
image_size: 16
mean: [0.3]
std: [0.36]
"""
NOTHING = """

class Nothing(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.bn = nn.BatchNorm1d(10)

    def forward(self, x):
        return self.bn(x.flatten(1)[:, :10])
"""
QUICK = ["data.workers=0", "trainer.enable_progress_bar=false", "logger=none", "dense.warmup_epochs=0"]
QUICK += ["dense.epochs=3", "finetune.epochs=1", "data=digits", "data.mean=null", "data.std=null"]
OWN = ["model=own", "data.mean=[0.3]", "data.std=[0.36]"]
PRUNED = ["strategy=p70", "budget=0.7", "reconstruct=least_squares"]
CHANNELS = ["strategy=p50", "budget=0.5", "pattern=channels:8", "ranges=channels", "reconstruct=least_squares"]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return warm.run(command, environment, folder)


def done(folder: Path, *command: str) -> str:
    result = run(folder, *command)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def error_of(folder: Path, *command: str) -> str:
    result = run(folder, *command)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "results" / "cache" / "dense").exists(), "something was trained"
    return result.stderr.strip().splitlines()[-1]


def written(folder: Path) -> Path:
    shutil.copy(Path(__file__).with_name("stranger.py"), folder)
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "my_resnet.yaml").write_text(MODEL)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the network, its configuration, and a checkpoint as training scripts write it."""
    place = written(tmp_path_factory.mktemp("work"))
    done(place, str(ROOT / "train.py"), "model=my_resnet", *[one for one in QUICK if "finetune" not in one])
    (trained,) = (place / "results" / "dense").glob("*/model.safetensors")
    state = load_file(trained)
    torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": 3}, place / "resnet.pth")
    shutil.rmtree(place / "results")
    return place


@pytest.fixture(scope="module", params=[PRUNED, CHANNELS], ids=["weights", "channels"])
def pruned(request: pytest.FixtureRequest, folder: Path) -> Path:
    """The folder of a pruned model, exported to ONNX and as shrunk and sparse files."""
    results = f"paths.results=results_{len(request.param)}"
    command = ["model=my_resnet", "model.checkpoint=resnet.pth", *QUICK, *request.param, results]
    assert "weights of state_dict.module" in done(folder, str(ROOT / "prune.py"), *command)
    (path,) = (folder / results.partition("=")[2] / "runs").iterdir()
    done(folder, "-m", "mmp.export", str(path), "target=onnx,sparse,shrunk", "seconds=0")
    return path


def read(path: Path, target: str = "onnx") -> tuple[dict[str, Any], str]:
    place = path / "export" / target
    return json.loads((place / "export.json").read_text()), (place / "README.md").read_text()


def images_of(path: Path) -> Tensor:
    config = load_config(path)
    return torch.cat([x for x, _ in ImageData(config.data, config.seed).test_dataloader()])


@pytest.fixture
def stranger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    import stranger

    return stranger


def test_nothing_was_trained_and_everything_is_reported(pruned: Path) -> None:
    result = json.loads((pruned / "result.json").read_text())
    assert (result["model"], result["dense_cached"]) == ("ResNet", True)
    assert result["accuracy"]["dense"]["test"] > 0.8
    roles = [layer["role"] for layer in result["layers"]]
    assert "other" not in roles
    if len(roles) == 8:
        assert roles == ["stem", *["conv"] * 6, "classifier"]
        assert result["sparsity"] == pytest.approx(0.7, abs=1e-4)
    else:
        assert result["sparsity_all"] > 0.5


def test_onnx_computes_what_the_stranger_s_own_class_computes(pruned: Path, stranger: Any) -> None:
    network = stranger.ResNet(16).eval()
    network.load_state_dict(load_tensors(pruned / "model.safetensors"))
    images = images_of(pruned)
    session = onnxruntime.InferenceSession(pruned / "export/onnx/model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.inference_mode():
        expected = network(images)
    assert np.allclose(logits, expected.numpy(), atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("target", ["sparse", "shrunk"])
def test_the_lines_of_the_card_build_the_network_again(
    pruned: Path, target: str, stranger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, card = read(pruned, target)
    assert content["model"]["file"] == "stranger.py"
    assert "The dense network is `stranger.ResNet(width=16)` of the file `stranger.py`" in card
    monkeypatch.chdir(pruned / "export" / target)
    scope: dict[str, Any] = {"images": images_of(pruned)}
    code = re.search(r"## How to load it\n```python\n(.*?)```", card, re.DOTALL)
    assert code
    with torch.inference_mode():
        exec(code[1], scope)
        network = stranger.ResNet(16).eval()
        network.load_state_dict(load_tensors(pruned / "model.safetensors"))
        expected = network(scope["images"])
    assert torch.allclose(scope["logits"], expected, atol=1e-4 * float(expected.abs().max()))


def test_a_shrunk_file_never_imports_a_class(pruned: Path, stranger: Any) -> None:
    path = pruned / "export/shrunk/model.shrunk.safetensors"
    with pytest.raises(MmpError, match=r"network of your own; pass it: mmp\.load_shrunk\(FILE, stranger\.ResNet\("):
        load_shrunk(path)
    with pytest.raises(MmpError, match=r"is missing|is not in Linear") as caught:
        load_shrunk(path, nn.Linear(2, 2))
    assert "timm" not in str(caught.value)
    given = stranger.ResNet(16)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    load_shrunk(path, given)
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_whole_channels_are_gone_from_the_files(pruned: Path) -> None:
    content, card = read(pruned, "shrunk")
    if "channels" in pruned.name:
        assert content["network"]["parameters"] < 0.5 * content["network"]["dense_parameters"]
        assert "`layer3.0.conv1.weight`" in card


def test_the_command_of_the_card_makes_the_same_masks(pruned: Path, folder: Path, tmp_path: Path) -> None:
    content, card = read(pruned)
    (line,) = [line for line in card.splitlines() if line.startswith("mmp-prune ")]
    again = written(tmp_path)
    shutil.copy(folder / "resnet.pth", again)
    done(again, str(ROOT / "prune.py"), *shlex.split(line)[1:])
    (repeated,) = again.glob("results*/runs/*/result.json")
    result = json.loads(repeated.read_text())
    assert result["masks_hash"] == content["masks_hash"]
    assert result["masks_hash"] in card
    assert repeated.parent.name == pruned.name


def test_an_edit_of_the_class_is_another_run_and_no_export(folder: Path, pruned: Path) -> None:
    command = [*shlex.split(read(pruned)[0]["command"])[1:]]
    assert "already completed" in done(folder, str(ROOT / "prune.py"), *command)
    code = folder / "stranger.py"
    before = code.read_text()
    try:
        code.write_text(before + "# an edit\n")
        line = run(folder, "-m", "mmp.export", str(pruned), "target=onnx", "seconds=0").stderr
        assert "model._target_=stranger.ResNet: its code has changed since the run" in line
        plan = run(folder, str(ROOT / "prune.py"), *command, "--cfg", "hydra", "--package", "hydra.run")
        assert plan.returncode == 0, plan.stderr
        assert pruned.name not in plan.stdout
    finally:
        code.write_text(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=own"], "model.name: must be set to a model of timm, or model._target_"),
        ([*OWN, "model._target_=strangr.ResNet"], "model._target_=strangr.ResNet: cannot be imported"),
        ([*OWN, "model._target_=stranger.ResNet"], "stranger.ResNet needs the argument width; set +model"),
        (["model=my_resnet", "+model.kwargs.widht=3"], "model.kwargs.widht: stranger.ResNet has no such argument"),
        (["model=my_resnet", "model.name=resnet18"], "model._target_=stranger.ResNet: is a network of your own, but"),
        (["model=my_resnet", "model.pretrained=true"], "model.pretrained=true: timm's weights are for timm's models"),
        (["model=my_resnet", "+model.kwargs.num_classes=7"], "model.kwargs.num_classes=7: ResNet returns a tensor"),
        (["model=my_resnet", "+model.kwargs.channels=3"], "model.kwargs.channels=3: ResNet fails with it"),
        (["model=my_resnet", "model.num_classes=7"], "model.num_classes=7, but data=digits has 10 classes"),
        (["model=my_resnet", "data.mean=[0.5]"], "data.mean=[0.5], but model.mean=[0.3]"),
        (["model=my_resnet", "model.mean=[0.1,0.2]"], "model.mean=[0.1, 0.2]: must be a list of one number"),
        (["model=my_resnet", "model._target_=stranger.Nothing"], "Nothing has no prunable layer: no convolution"),
        (["model=my_resnet", "model.checkpoint=nowhere.pth"], "model.checkpoint=nowhere.pth: no such file"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_is_trained(arguments: list[str], message: str, tmp_path: Path) -> None:
    place = written(tmp_path)
    with (place / "stranger.py").open("a") as file:
        file.write(NOTHING)
    assert message in error_of(place, str(ROOT / "prune.py"), *QUICK, *PRUNED, *arguments)


def test_a_plan_and_a_sweep_of_two_networks(tmp_path: Path) -> None:
    place = written(tmp_path)
    with (place / "stranger.py").open("a") as file:
        file.write("\n\ndef wide(width):\n    return ResNet(2 * width)\n")
    assert "conservative" in done(place, "-m", "mmp.plan", "model=my_resnet")
    networks = ["model=own", "model._target_=stranger.wide,stranger.ResNet", "+model.kwargs.width=16"]
    settings = [*QUICK, "data.mean=[0.3]", "data.std=[0.36]", "dense.epochs=1", "finetune=none", "strategy=p50"]
    done(place, str(ROOT / "prune.py"), "-m", *networks, *settings)
    results = [json.loads(path.read_text()) for path in place.glob("results/sweeps/sweep/*/result.json")]
    assert sorted(result["model"] for result in results) == ["ResNet", "wide"]
    assert (place / "results/sweeps/sweep/report/index.html").is_file()
