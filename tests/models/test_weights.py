"""Weights as other tools write them: the network's own names find them, and what was done is logged."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmp.errors import MmpError
from mmp.models.weights import load_weights

State = dict[str, Tensor]


def network() -> nn.Module:
    """A network with batch norm whose names of layers occur in each other's."""
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(4, 3))


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: value for name, value in state.items()}


def without_counters(state: State) -> State:
    return {name: value for name, value in state.items() if "num_batches" not in name}


def halved(state: State) -> State:
    return {name: value / 2 if value.is_floating_point() else value for name, value in state.items()}


def of_training(state: State) -> dict[str, Any]:
    names = {name: torch.full_like(value, 7) for name, value in state.items()}
    numbered = {index: {"exp_avg": torch.zeros_like(value)} for index, value in enumerate(state.values())}
    return {"state": numbered, "exp_avg": names, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}


# What a tool writes, from the state_dict of the network.
FILES: dict[str, Callable[[State], Any]] = {
    "DataParallel": lambda state: under("module.", state),
    "torch.compile": lambda state: under("_orig_mod.", state),
    "compiled DataParallel": lambda state: under("_orig_mod.module.", state),
    "DataParallel of compiled": lambda state: under("module._orig_mod.", state),
    "compiled layers": lambda state: {name.replace("0.", "0._orig_mod.", 1): value for name, value in state.items()},
    "model": lambda state: {"model": state, "epoch": 3},
    "net": lambda state: {"net": state, "acc": 91.2},
    "params": lambda state: {"params": state},
    "two levels": lambda state: {"checkpoint": {"model": under("module.", state)}, "epoch": 3},
    "Lightning, net": lambda state: {"state_dict": under("net.", state), "epoch": 3, "hyper_parameters": {"lr": 0.1}},
    "Lightning, nested": lambda state: {"state_dict": under("model.module._orig_mod.", state)},
    "Lightning, backbone": lambda state: {"state_dict": under("backbone.encoder.", state)},
    "Lightning, other modules": lambda state: {
        "state_dict": {"criterion.weight": torch.ones(3), **under("model.", state), "metric.total": torch.ones(1)}
    },
    "Lightning, registered twice": lambda state: {"state_dict": {**under("net.", state), **under("model.", state)}},
    "optimizer beside": lambda state: {"optimizer": of_training(state), "model_state_dict": state},
    "EMA beside": lambda state: {"state_dict_ema": halved(state), "state_dict": state},
    "EMA beside, Lightning": lambda state: {
        "state_dict": {**under("ema_model.module.", halved(state)), **under("model.", state)}
    },
    "teacher beside": lambda state: {"teacher": halved(state), "student": state},
    "EMA alone": lambda state: {"ema": state, "updates": 7},
    "averaged by torch": lambda state: {"n_averaged": torch.tensor(3), **under("module.", state)},
    "masks beside": lambda state: {"masks": {k: torch.zeros_like(v) for k, v in state.items()}, "model": state},
    "profiler": lambda state: {"total_ops": torch.ones(1), "0.0.total_params": torch.ones(1), **state},
    "no counters": without_counters,
    "timm's train.py": lambda state: {
        "epoch": 3, "arch": "x", "state_dict": state, "args": argparse.Namespace(lr=0.1), "metric": np.float32(0.9)
    },
    "tuple": lambda state: (3, state),
    "whole network": lambda state: {"model": loaded_network(state)},
    "a short module name before": lambda state: under("0.", state),
    "copy within": lambda state: {**state, **under("ema.", halved(state))},
    "part first": lambda state: {"part": {"0.0.weight": state["0.0.weight"]}, "model": under("x.", state)},
}  # fmt: skip


def loaded_network(state: State) -> nn.Module:
    model = network()
    model.load_state_dict(state)
    return model


def assert_equal(model: nn.Module, state: State) -> None:
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", FILES)
def test_weights_of_other_tools_are_the_networks_own(name: str, tmp_path: Path) -> None:
    state, model, path = network().state_dict(), network(), tmp_path / "x.pth.tar"
    torch.save(FILES[name](state), path)
    load_weights(model, path)
    assert_equal(model, state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.net."])
def test_prefixes_are_found_in_safetensors_too(prefix: str, tmp_path: Path) -> None:
    state, model = network().state_dict(), network()
    save_file(under(prefix, state), tmp_path / "x.safetensors")
    load_weights(model, tmp_path / "x.safetensors")
    assert_equal(model, state)


def loaded(content: Any, path: Path, weights_key: str | None = None) -> State:
    model = network()
    torch.save(content, path)
    load_weights(model, path, key="model.checkpoint", weights_key=weights_key)
    return model.state_dict()


def test_a_key_chooses_the_averaged_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state, path = network().state_dict(), tmp_path / "x.pth"
    content = {"state_dict": state, "state_dict_ema": under("module.", halved(state)), "optimizer": of_training(state)}
    assert torch.equal(loaded(content, path)["1.weight"], state["1.weight"])
    assert (
        "weights of state_dict; averaged weights are there, too: model.weights_key=state_dict_ema.module" in caplog.text
    )
    for key in ("state_dict_ema", "state_dict_ema.module"):
        assert torch.equal(loaded(content, path, key)["1.weight"], state["1.weight"] / 2)
    assert "weights of state_dict_ema.module" in caplog.text
    with pytest.raises(MmpError, match=r"no weights model\.weights_key=ema; .*state_dict_ema\.module"):
        loaded(content, path, "ema")


def test_several_weights_without_a_key_are_refused_unless_they_are_equal(tmp_path: Path) -> None:
    state, path = network().state_dict(), tmp_path / "x.pth"
    content = {"encoder_q": state, "encoder_k": halved(state)}
    with pytest.raises(MmpError, match=r"set model\.weights_key=encoder_q or model\.weights_key=encoder_k"):
        loaded(content, path)
    assert torch.equal(loaded(content, path, "encoder_k")["1.weight"], state["1.weight"] / 2)


def test_states_of_a_training_are_never_taken(tmp_path: Path) -> None:
    state, path = network().state_dict(), tmp_path / "x.pth"
    for content in ({"optimizer": of_training(state)}, {"exp_avg": state}, {"masks": state}, {"optim": {"ema": state}}):
        with pytest.raises(MmpError, match=r"contains no weights, but .* the state of a training"):
            loaded(content, path)
    with pytest.raises(MmpError, match=r"not a checkpoint of this model \(missing 0\.0\.weight; "):
        loaded({"optimizer": of_training(state), "model": {"other.weight": torch.ones(2)}}, path)


def test_a_key_that_the_file_lacks_names_those_that_it_has(tmp_path: Path) -> None:
    state, path = network().state_dict(), tmp_path / "x.pth"
    with pytest.raises(MmpError, match=r"no weights model\.weights_key=ema; its weights have no key, so set"):
        loaded(state, path, "ema")
    momentum = {"momentum": state}
    with pytest.raises(MmpError, match=r"set model\.weights_key=momentum if it holds the weights"):
        loaded(momentum, path)
    assert torch.equal(loaded(momentum, path, "momentum")["1.weight"], state["1.weight"])


def test_a_tensor_within_the_network_is_an_error_and_one_beside_it_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    state, path = network().state_dict(), tmp_path / "x.pth"
    loaded({**under("net.", state), "loss.a": torch.ones(1), "loss.b": torch.ones(1)}, path)
    assert "weights of net; ignored 2 tensors such as loss.a" in caplog.text
    with pytest.raises(MmpError, match=r"unexpected 2\.weight\); check model\._target_"):
        loaded(under("net.", {**state, "2.weight": torch.ones(3)}), path)


def test_other_precisions_are_converted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = network().state_dict()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        content = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        weight = loaded(content, tmp_path / "x.pth")["1.weight"]
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, state["1.weight"], rtol=0.01, atol=0.01)
        assert f"converted from {dtype} to torch.float32" in caplog.text


def test_torchs_own_averages_and_pruning_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = network()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    ema.update_parameters(model)
    assert torch.equal(loaded(ema.state_dict(), tmp_path / "x.pth")["1.weight"], model[1].weight)
    prune.global_unstructured([(model[1], "weight"), (model[0][0], "weight")], prune.L1Unstructured, amount=0.5)
    state = loaded({"state_dict": model.state_dict()}, tmp_path / "x.pth")
    assert torch.equal(state["1.weight"], model[1].weight)
    assert (state["1.weight"] == 0).sum() + (state["0.0.weight"] == 0).sum() == 24
    assert "the masks of torch.nn.utils.prune folded into 2 tensors such as 0.0.weight" in caplog.text


def test_a_parametrization_that_cannot_be_undone_is_named(tmp_path: Path) -> None:
    model = network()
    nn.utils.parametrizations.orthogonal(model[1])
    with pytest.raises(MmpError, match=r"under a parametrization that cannot be undone .*remove_parametrizations"):
        loaded(model.state_dict(), tmp_path / "x.pth")


TINY = {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4], "stem_width": 4}


@pytest.mark.parametrize("change", [{"num_classes": 7}, {"in_chans": 3}, {"num_classes": 0}, {"in_chans": 4}], ids=str)
def test_another_first_or_last_layer_is_refused_with_the_key_that_adapts_it(
    change: dict[str, int], tmp_path: Path
) -> None:
    options = {"num_classes": 3, "in_chans": 1, **TINY}
    path = tmp_path / "x.pth"
    torch.save({"state_dict": timm.create_model("resnet18", **{**options, **change}).state_dict()}, path)
    with pytest.raises(MmpError, match=r"first or last layer .*set model\.pretrained_file=.*x\.pth and"):
        load_weights(timm.create_model("resnet18", **options), path, key="model.checkpoint")


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    state = network().state_dict()
    state["1.weight"][0, 0] = torch.nan
    with pytest.raises(MmpError, match=r"x\.pth: '1\.weight' holds NaN or infinity"):
        loaded({"model": state}, tmp_path / "x.pth")


def test_a_checkpoint_for_another_image_size_is_not_resized(tmp_path: Path) -> None:
    small = {"depth": 1, "embed_dim": 12, "num_heads": 1, "patch_size": 8, "num_classes": 3}
    large, model = (timm.create_model("vit_tiny_patch16_224", img_size=size, **small) for size in (64, 32))
    torch.save(large.state_dict(), tmp_path / "x.pth")
    with pytest.raises(MmpError, match=r"pos_embed is \(1, 65, 12\) instead of \(1, 17, 12\)\); check model\.name"):
        load_weights(model, tmp_path / "x.pth")


def test_a_network_that_contains_its_own_names_is_read_whole(tmp_path: Path) -> None:
    def nested(depth: int) -> nn.Module:
        return nn.ModuleDict({"a": nn.Linear(2, 2), **({"x": nested(depth - 1)} if depth else {})})

    state, model = nested(3).state_dict(), nested(3)
    for prefix in ("", "net."):
        torch.save(under(prefix, state), tmp_path / "x.pth")
        load_weights(model, tmp_path / "x.pth")
        assert_equal(model, state)


def test_another_network_is_refused_with_the_number_of_differences(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(under("module.", timm.create_model("resnet26", num_classes=3, **TINY).state_dict()), path)
    with pytest.raises(MmpError) as caught:
        load_weights(timm.create_model("resnet18", num_classes=3, **TINY), path, key="model.checkpoint")
    message = str(caught.value)
    assert "not a checkpoint of this model (unexpected layer1.0.conv3.weight; " in message
    assert " more); check model.name and model.kwargs" in message


def old_convnext(state: State) -> State:
    """The names of ConvNeXt's authors, which timm converts."""
    names = {"stem.": "downsample_layers.0.", ".blocks.": ".", "conv_dw.": "dwconv.", "mlp.fc1.": "pwconv1."}
    names |= {"mlp.fc2.": "pwconv2.", "head.norm.": "norm.", "head.fc.": "head."}
    renamed = {}
    for full_name, value in state.items():
        name = full_name
        for new, old in names.items():
            name = name.replace(new, old)
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = f"downsample_layers.{stage}.{name.partition('.downsample.')[2]}"
        renamed[name] = value
    return renamed


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": under("module.", state)},
        lambda state: {"loss": {"weights": torch.ones(2)}, "model_ema": halved(state), "model": state},
    ],
)
def test_older_names_are_converted_by_timm(
    wrap: Callable[[State], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8], "num_classes": 3, "in_chans": 1}
    state = timm.create_model("convnext_atto", conv_mlp=False, **options).state_dict()
    torch.save(wrap(old_convnext(state)), tmp_path / "x.pth")
    model = timm.create_model("convnext_atto", conv_mlp=False, **options)
    load_weights(model, tmp_path / "x.pth")
    assert_equal(model, state)
    assert "older names converted by timm" in caplog.text


@pytest.mark.parametrize("kind", [torch.int8, torch.int32, torch.complex64])
@pytest.mark.parametrize("older", [False, True])
def test_timm_converts_no_weights_of_another_kind_of_numbers(kind: torch.dtype, older: bool, tmp_path: Path) -> None:
    options = {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8], "num_classes": 3, "in_chans": 1}
    model = timm.create_model("convnext_atto", conv_mlp=False, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: (100 * value).to(kind) for name, value in before.items()}
    torch.save(old_convnext(state) if older else state, tmp_path / "x.pth")
    with pytest.raises(MmpError, match=r"not a checkpoint of this model"):
        load_weights(model, tmp_path / "x.pth")
    assert_equal(model, before)


@pytest.mark.parametrize("key", ["masks", "pruner.mask"])
def test_masks_beside_the_weights_are_logged(key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = network()
    content: dict[str, Any] = {"0.0.weight": torch.zeros(4, 1, 3, 3), "1.weight": torch.zeros(3, 4)}
    for part in reversed(key.split(".")):
        content = {part: content}
    torch.save({"state_dict": model.state_dict(), **content}, tmp_path / "x.pth")
    load_weights(model, tmp_path / "x.pth")
    assert f"masks are there, too, and are not applied: {key}" in caplog.text
