"""model.pretrained_file: what of a file becomes the start of a training, and what is logged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor

from mmp.config.schema import ModelConfig
from mmp.errors import MmpError
from mmp.models.networks import build_model

TINY = {"layers": [1, 1, 0, 0], "channels": [4, 8, 8, 8], "stem_width": 4}


def state_of(classes: int, channels: int = 3) -> dict[str, Tensor]:
    return timm.create_model("resnet18", num_classes=classes, in_chans=channels, **TINY).state_dict()


def built(content: Any, path: Path, classes: int | None, channels: int = 3, **changes: Any) -> dict[str, Tensor]:
    torch.save(content, path)
    config = ModelConfig(name="resnet18", num_classes=classes, in_chans=channels, kwargs=TINY, **changes)
    config.pretrained_file = str(path)
    return build_model(config).state_dict()


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": {f"net.{k}": v for k, v in state.items()}}]
)
def test_a_last_layer_of_the_right_size_is_kept(classes: int, wrap: Any, tmp_path: Path) -> None:
    state = state_of(classes)
    loaded = built(wrap(state), tmp_path / "x.pth", classes)
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["levit_128s", "vgg11_bn_small"])
def test_every_last_layer_of_a_model_is_kept_or_dropped(name: str, tmp_path: Path) -> None:
    state = timm.create_model(name, num_classes=5).state_dict()
    torch.save({"model": state}, tmp_path / "x.pth")
    for classes in (5, 4):
        config = ModelConfig(name=name, num_classes=classes, pretrained_file=str(tmp_path / "x.pth"))
        loaded = build_model(config).state_dict()
        fits = {key: value.shape == state[key].shape for key, value in loaded.items()}
        assert all(fits.values()) == (classes == 5)
        assert all(torch.equal(value, state[key]) for key, value in loaded.items() if fits[key])


def test_without_a_number_of_classes_the_model_has_that_of_timm(tmp_path: Path) -> None:
    state = state_of(1000)
    assert torch.equal(built(state, tmp_path / "x.pth", None)["fc.weight"], state["fc.weight"])


@pytest.mark.parametrize(("theirs", "ours"), [(10, 3), (1000, 10), (3, 1000), (10, 11)])
def test_a_last_layer_of_another_size_is_dropped_and_logged(
    theirs: int, ours: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    state = state_of(theirs)
    loaded = built(state, tmp_path / "x.pth", ours)
    assert loaded["fc.weight"].shape[0] == ours
    assert all(torch.equal(value, state[name]) for name, value in loaded.items() if not name.startswith("fc"))
    assert f"dropped the last layer of {theirs} classes; the new one of {ours} classes is random" in caplog.text


def test_a_file_without_a_last_layer_is_accepted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = {name: value for name, value in state_of(10).items() if not name.startswith("fc")}
    loaded = built({f"backbone.{name}": value for name, value in state.items()}, tmp_path / "x.pth", 5)
    assert all(torch.equal(value, loaded[name]) for name, value in state.items())
    assert "weights of backbone; dropped the last layer; the new one of 5 classes is random" in caplog.text


@pytest.mark.parametrize("theirs", [1, 3])
@pytest.mark.parametrize("ours", [1, 3, 4])
def test_a_first_layer_of_other_channels_is_converted_and_logged(
    theirs: int, ours: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    state = state_of(10, theirs)
    first = built(state, tmp_path / "x.pth", 10, ours)["conv1.weight"]
    assert torch.equal(first, adapt_input_conv(ours, state["conv1.weight"], base_chans=theirs))
    assert ("conv1.weight converted from" in caplog.text) == (theirs != ours)


def test_tensors_beside_the_network_are_ignored_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    built({**state_of(10), "aux.weight": torch.ones(3)}, tmp_path / "x.pth", 10)
    assert "ignored aux.weight" in caplog.text


def test_a_key_chooses_the_averaged_weights(tmp_path: Path) -> None:
    state, ema = state_of(10), state_of(10)
    content = {"model": state, "model_ema": ema}
    assert torch.equal(built(content, tmp_path / "x.pth", 10)["fc.weight"], state["fc.weight"])
    loaded = built(content, tmp_path / "x.pth", 10, weights_key="model_ema")
    assert torch.equal(loaded["fc.weight"], ema["fc.weight"])


def test_weights_with_a_last_layer_go_before_those_without(tmp_path: Path) -> None:
    state = state_of(10)
    content = {"backbone": {k: v for k, v in state.items() if not k.startswith("fc")}, "model": state}
    assert torch.equal(built(content, tmp_path / "x.pth", 10)["fc.weight"], state["fc.weight"])


def test_a_position_embedding_of_another_image_size_is_resized_as_timm_does_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    small = {"depth": 1, "embed_dim": 12, "num_heads": 1, "patch_size": 8}
    models = [timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, **small) for _ in range(2)]
    weights, averages = (model.state_dict() for model in models)
    torch.save({"state_dict_ema": averages, "state_dict": weights}, tmp_path / "x.pth")
    config = ModelConfig(name="vit_tiny_patch16_224", num_classes=5, pretrained_file=str(tmp_path / "x.pth"))
    config.kwargs = {**small, "img_size": 32}
    loaded = build_model(config).state_dict()
    assert torch.equal(loaded["head.weight"], weights["head.weight"])
    assert "pos_embed converted from (1, 65, 12) to (1, 17, 12)" in caplog.text
    assert "averaged weights are there, too: model.weights_key=state_dict_ema" in caplog.text


def test_a_new_last_layer_depends_on_the_seed_alone(tmp_path: Path) -> None:
    heads = []
    for content in (state_of(1000), {k: v for k, v in state_of(10).items() if not k.startswith("fc")}):
        torch.manual_seed(7)
        heads.append(built(content, tmp_path / "x.pth", 5)["fc.weight"])
    assert torch.equal(*heads)


def test_a_file_of_another_network_is_refused_in_one_line(tmp_path: Path) -> None:
    other = timm.create_model("resnet26", num_classes=10, **TINY).state_dict()
    with pytest.raises(MmpError) as caught:
        built(other, tmp_path / "x.pth", 10)
    assert "not the weights of model.name=resnet18; correct one of them (" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "way_out"),
    [
        ({"features_only": True}, r"model\.kwargs\.features_only=True: the model would return feature maps"),
        ({"out_indices": [1]}, r"model\.kwargs\.out_indices=\[1\]: the model would return feature maps"),
        ({"num_classes": 5}, r"model\.kwargs\.num_classes=5: set model\.num_classes instead"),
        ({"in_chans": 5}, r"model\.kwargs\.in_chans=5: set model\.in_chans instead"),
    ],
)
def test_arguments_that_change_what_a_model_returns_are_refused(kwargs: dict[str, Any], way_out: str) -> None:
    with pytest.raises(MmpError, match=way_out):
        build_model(ModelConfig(name="resnet18", num_classes=3, kwargs={**TINY, **kwargs}))
