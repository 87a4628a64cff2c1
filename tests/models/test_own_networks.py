"""A network of the user: built from its class, refused in one line if it cannot be used, and part of the identity."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmp.config.identity import architecture, digest, identity, settings_of
from mmp.config.schema import DataConfig, ModelConfig, TrainConfig
from mmp.config.source_code import file_of
from mmp.errors import MmpError
from mmp.models.networks import build_model, build_skeleton, fill_input, python_code
from mmp.models.weights import load_weights
from mmp.pruning.layers.prunable import prunable_layers
from mmp.training.logits import require_logits

NET = """
import torch
from torch import nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self, width=4, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.linear = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))
"""
NUMBERS = itertools.count()
Address = Callable[..., str]


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Address:
    """Return a function that writes a module with a name of its own, and returns the address of something in it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str = "", name: str = "Net") -> str:
        module = f"own_network_{next(NUMBERS)}"
        (tmp_path / f"{module}.py").write_text(NET + text)
        importlib.invalidate_caches()
        return f"{module}.{name}"

    return write


def own(target: str, **changes: Any) -> ModelConfig:
    return ModelConfig(**{"_target_": target, "num_classes": 3, "in_chans": 1, **changes})


def config_of(target: str, **changes: Any) -> TrainConfig:
    data = DataConfig(name="x", classes=3, channels=1, image_size=8, mean=[0.5], std=[0.5])
    return TrainConfig(model=own(target, **changes), data=data)


# --- building ---


def test_a_class_is_built_with_its_arguments_in_training_mode(address: Address) -> None:
    cfg = own(address(), kwargs={"width": 6})
    network = build_model(cfg)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert network.training
    assert network.conv.weight.shape == (6, 1, 3, 3)
    assert all(parameter.is_meta for parameter in build_skeleton(cfg).parameters())
    assert python_code(cfg) == (f"import {cfg._target_.partition('.')[0]}", f"{cfg._target_}(width=6)")
    assert (cfg.title, file_of(cfg._target_)) == ("Net", f"{cfg._target_.partition('.')[0]}.py")


def test_a_function_that_returns_the_same_network_each_time_gives_networks_of_their_own(address: Address) -> None:
    cfg = own(address("ONE = Net().eval()\ndef one():\n    return ONE\n", "one"))
    first, second = build_model(cfg), build_model(cfg)
    assert first.training
    with torch.no_grad():
        first.conv.weight.zero_()
    assert second.conv.weight.any()
    assert build_model(cfg).conv.weight.any()


@pytest.mark.parametrize(
    ("target", "kwargs"),
    [
        ("torchvision.models.resnet18", {"num_classes": 3}),
        ("torchvision.models:resnet18", {"num_classes": 3, "weights": None}),
        ("torchvision.models.get_model", {"name": "resnet18", "num_classes": 3}),
    ],
)
def test_networks_of_torchvision_are_built_in_the_same_way(target: str, kwargs: dict[str, Any]) -> None:
    cfg = own(target, in_chans=3, kwargs=kwargs)
    skeleton = build_skeleton(cfg)
    assert skeleton.fc.out_features == 3
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert python_code(cfg)[0] == "import torchvision.models"
    assert architecture(cfg)["_target_"] == target  # no hash of its source: torchvision is a package below this one


def test_weights_of_torchvision_are_named_by_a_string() -> None:
    with pytest.raises(MmpError, match=r"model\.kwargs: torchvision\.models\.resnet18 does not accept .*'NO_SUCH'"):
        build_model(own("torchvision.models.resnet18", kwargs={"weights": "NO_SUCH"}))


@pytest.mark.parametrize(
    ("text", "name", "kwargs", "message"),
    [
        ("", "Nett", {}, r"model\._target_=\S+Nett: cannot be imported .*did you mean 'Net'\?"),
        ("net = 3\n", "net", {}, r"model\._target_=\S+net: is a int, neither a class nor a function"),
        ("net = Net()\n", "net", {}, r"model\._target_=\S+net: is a network; name its class, or a function"),
        ("", "Net", {"widht": 3}, r"model\.kwargs\.widht: \S+Net has no such argument; did you mean 'width'\?"),
        (
            "def make(depth, *, width):\n    return Net(width)\n", "make", {},
            r"model\.kwargs: \S+make needs the argument depth, width; set \+model\.kwargs\.depth=\.\.\. \+model",
        ),
        ("def make():\n    return 1 / 0\n", "make", {}, r"model\.kwargs: \S+make fails without arguments .*division"),
        ("", "Net", {"width": -1}, r"model\.kwargs: \S+Net does not accept \{'width': -1\} \("),
        ("def make():\n    raise SystemExit(2)\n", "make", {}, r"model\.kwargs: \S+make fails without arguments \(2\)"),
        ("def make():\n    return {}\n", "make", {}, r"model\._target_=\S+make: returns a dict; it must return"),
        ("def make():\n    return Net\n", "make", {}, r"model\._target_=\S+make: returns a type; it must return"),
        ("def make():\n    return nn.DataParallel(Net())\n", "make", {}, r"model\._target_=\S+: model is a DataPara"),
        ("def make():\n    return torch.jit.script(Net())\n", "make", {}, r"model\._target_=\S+: model is a script"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_one_line(
    text: str, name: str, kwargs: dict[str, Any], message: str, address: Address
) -> None:
    with pytest.raises(MmpError, match=rf"^{message}") as caught:
        build_model(own(address(text, name), kwargs=kwargs))
    assert "\n" not in str(caught.value)


def test_a_module_that_is_missing_is_named_with_the_folder_that_was_searched(address: Address, tmp_path: Path) -> None:
    with pytest.raises(MmpError, match=rf"No module named 'own_nowhere'\); .* working folder {Path.cwd()}"):
        build_model(own("own_nowhere.Net"))
    with pytest.raises(MmpError, match=r"cannot be imported .*'own_nowhere'\); own_network_\d+ needs this module"):
        build_model(own(address("import own_nowhere\n")))


def test_a_classifier_that_is_created_first_is_the_classifier(address: Address) -> None:
    text = """
class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.c = nn.Conv2d(4, 4, 3)
        self.c.weight = self.b.weight
    def forward(self, x):
        return self.out(self.c(self.b(self.a(x))).mean((2, 3)))
"""
    layers = prunable_layers(build_model(own(address(text, "First"))))
    assert {layer.name: layer.role for layer in layers} == {
        "out.weight": "classifier",
        "a.weight": "stem",
        "b.weight": "conv",
    }


# --- what it returns ---

FORWARD = "class Own(Net):\n    def forward(self, x):\n        out = super().forward(x)\n        {}\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return out, x", r"returns a tuple for 2 images, in place of logits \(2, 3\); return logits alone"),
        ("return {'logits': out}", r"returns a dict for 2 images, in place of logits \(2, 3\)"),
        ("return out[:, :, None, None]", r"returns a tensor of shape \(2, 3, 1, 1\) for 2 images"),
        ("return out[:, :2]", r"returns a tensor of shape \(2, 2\) for 2 images, .*\+model\.kwargs\.num_classes=3"),
        ("return out.squeeze()", r"returns a tensor of shape \(3,\) in place of \(1, 3\) for one image"),
        ("return out + 0 * out[1]", r"fails on a batch of one image \(index 1 is out of bounds"),
        ("return out.argmax(1)", r"returns a tensor of shape \(2,\) for 2 images"),
        ("return out.softmax(1)", r"returns probabilities, which sum to 1; return the logits"),
        ("return F.dropout(out, 0.9)", r"two passes over the same images give different logits in evaluation mode"),
    ],
)
def test_what_is_no_logits_is_refused(body: str, message: str, address: Address) -> None:
    torch.manual_seed(0)
    config = config_of(address(FORWARD.format(body), "Own"))
    with pytest.raises(MmpError, match=rf"^model\._target_=own_network_\d+\.Own: .*{message}") as caught:
        require_logits(config)
    assert "\n" not in str(caught.value)


def test_dropout_in_training_and_networks_for_other_images(address: Address) -> None:
    require_logits(config_of(address(FORWARD.format("return F.dropout(out, 0.9, self.training)"), "Own")))
    require_logits(config_of(address(FORWARD.format("return out.log_softmax(1)"), "Own")))
    for body in ("raise ValueError('no')", "return out @ torch.ones(7, 7)"):
        with pytest.raises(MmpError, match=r"^data\.image_size=8: Own fails on images of 1 channels and this size \("):
            require_logits(config_of(address(FORWARD.format(body), "Own")))
    larger = "        return super().forward(F.conv2d(x, self.conv.weight.new_ones(1, 1, 20, 20)))\n"
    larger = f"class Own(Net):\n    def forward(self, x):\n{larger}"
    with pytest.raises(MmpError, match=r"^data\.image_size=8: Own cannot read .*; set data\.image_size=24"):
        require_logits(config_of(address(larger, "Own")))


def test_an_argument_that_changes_the_number_of_classes_is_named(address: Address) -> None:
    with pytest.raises(MmpError, match=r"^model\.kwargs\.num_classes=5: Net returns a tensor of shape \(2, 5\)"):
        require_logits(config_of(address(), kwargs={"num_classes": 5}))


# --- its input ---


def test_the_input_is_stated_by_the_model_or_by_the_data() -> None:
    config = config_of("x.Net", image_size=12, mean=[0.2], std=[0.3])
    config.data.mean = config.data.std = config.data.image_size = None
    fill_input(config)
    assert (config.data.image_size, config.data.mean, config.data.std) == (12, [0.2], [0.3])
    config = config_of("x.Net", image_size=12)
    fill_input(config)
    assert (config.data.image_size, config.data.mean) == (8, [0.5])


def test_an_input_that_nobody_states_or_that_two_state_differently_is_refused() -> None:
    config = config_of("x.Net")
    config.data.mean = None
    with pytest.raises(MmpError, match=r"model\._target_=x\.Net: no mean of its training .* model\.mean or data\.mean"):
        fill_input(config)
    with pytest.raises(MmpError, match=r"data\.std=\[0\.5\], but model\.std=\[0\.3\]; set data\.std=null"):
        fill_input(config_of("x.Net", std=[0.3]))


# --- identity ---


def test_the_source_is_part_of_the_identity(address: Address) -> None:
    first, second = address(), address("# an edit\n")
    assert architecture(own(first))["_source_"] != architecture(own(second))["_source_"]
    configs = [config_of(one, kwargs={"width": width}) for one in (first, second) for width in (4, 5)]
    hashes = {digest(identity(settings_of(config))) for config in configs}
    assert len(hashes) == 4


def test_the_identity_of_a_timm_model_has_no_new_keys() -> None:
    settings = settings_of(TrainConfig(model=ModelConfig("resnet18"), data=DataConfig(name="x")))
    assert {"mean", "std", "_target_"} <= asdict(ModelConfig()).keys()
    assert not {"mean", "std", "_target_", "_source_"} & identity(settings)["model"].keys()


# --- files of weights ---


def wrapped(state: dict[str, torch.Tensor], kind: str) -> dict[str, Any]:
    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}{name}": value for name, value in state.items()}

    return {
        "plain": dict(state),
        "state_dict": {"state_dict": under("module."), "epoch": 3},
        "model": {"model": under("_orig_mod."), "optimizer": {"state": {}}},
        "net": {"net": under("module.model."), "acc": 91.0},
        "ema": {"model": state, "model_ema": {name: value + 1 for name, value in state.items()}},
    }[kind]


@pytest.mark.parametrize("kind", ["plain", "state_dict", "model", "net", "ema"])
@pytest.mark.parametrize("ending", [".pth", ".ckpt"])
def test_checkpoints_with_wrappers_are_read(kind: str, ending: str, address: Address, tmp_path: Path) -> None:
    cfg = own(address())
    state, target = build_model(cfg).state_dict(), build_model(cfg)
    torch.save(wrapped(state, kind), tmp_path / f"x{ending}")
    load_weights(target, tmp_path / f"x{ending}", key="model.checkpoint")
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"conv.bias": None},
            r"not a checkpoint of this model \(missing conv\.bias\); check model\._target_ and",
        ),
        ({"conv.extra": torch.zeros(2)}, r"not a checkpoint of this model \(unexpected conv\.extra\); check model\._t"),
        ({"conv.bias": torch.zeros(9)}, r"not a checkpoint of this model \(conv\.bias is \(9,\) instead of \(4,\)\)"),
        (
            {"linear.weight": torch.zeros(7, 4), "linear.bias": torch.zeros(7)},
            r"its first or last layer .*classes \(linear\.weight is \(7, 4\) instead of \(3, 4\).*set model\.pret",
        ),
    ],
)
def test_a_checkpoint_of_another_network_is_one_line(
    change: dict[str, Any], message: str, address: Address, tmp_path: Path
) -> None:
    network = build_model(own(address()))
    state = {name: value for name, value in {**network.state_dict(), **change}.items() if value is not None}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(MmpError, match=rf"^model\.checkpoint=\S+: {message}") as caught:
        load_weights(network, tmp_path / "x.safetensors", key="model.checkpoint")
    assert "\n" not in str(caught.value)


def test_a_training_starts_from_a_file_without_a_last_layer_of_other_classes(
    address: Address, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file, target = tmp_path / "x.safetensors", address()
    five = build_model(own(target, kwargs={"num_classes": 5}))
    save_file(five.state_dict(), file)
    network = build_model(own(target, pretrained_file=str(file)))
    assert torch.equal(network.conv.weight, five.conv.weight)
    assert network.linear.weight.shape == (3, 4)
    assert "dropped the last layer of 5 classes; the new one of 3 classes is random" in caplog.text
    same = build_model(own(target, pretrained_file=str(file), kwargs={"num_classes": 5}))
    assert torch.equal(same.linear.weight, five.linear.weight)
    with pytest.raises(MmpError, match=r"x\.safetensors: not the weights of model\._target_=\S+Net \(conv\.weight is"):
        build_model(own(target, pretrained_file=str(file), kwargs={"width": 5}))
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "y.safetensors")
    with pytest.raises(MmpError, match=r"y\.safetensors: not the weights of model\._target_=\S+Net \(missing conv"):
        build_model(own(target, pretrained_file=str(tmp_path / "y.safetensors")))
