"""Models: building them, loading their weights, and the input that they expect."""

from __future__ import annotations

import copy
import io
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mmp.config.schema import DataConfig, ModelConfig, TrainConfig
from mmp.errors import MmpError
from mmp.models.networks import build_model, build_skeleton, fill_input
from mmp.models.weights import load_weights
from mmp.pruning.calibration_statistics import collect
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters

TINY = {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4], "stem_width": 4}


def model_config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"name": "resnet18", "num_classes": 3, "in_chans": 1, "kwargs": TINY, **changes})


def test_a_model_is_built_by_its_timm_name() -> None:
    model = build_model(model_config())
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_unknown_names_and_arguments_are_explained() -> None:
    with pytest.raises(MmpError, match=r"resnet19.*'resnet18'"):
        build_model(model_config(name="resnet19"))
    with pytest.raises(MmpError, match=r"resnet18.*laers"):
        build_model(model_config(kwargs={"laers": [1]}))


@pytest.mark.parametrize("kind", ["safetensors", "state_dict", "lightning"])
def test_weights_come_from_any_kind_of_checkpoint(kind: str, tmp_path: Path) -> None:
    source, target = build_model(model_config()), build_model(model_config())
    state = source.state_dict()
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'ckpt'}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "state_dict":
        torch.save(state, path)
    else:
        torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    load_weights(target, path)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize("classes", [3, 7])
def test_pretrained_weights_from_a_file_keep_all_but_a_head_with_other_classes(classes: int, tmp_path: Path) -> None:
    source = build_model(model_config(num_classes=1000, in_chans=3))
    save_file(source.state_dict(), tmp_path / "imagenet.safetensors")
    torch.save(source.state_dict(), tmp_path / "imagenet.pth")
    for name in ("imagenet.safetensors", "imagenet.pth"):
        file = str(tmp_path / name)
        model = build_model(model_config(num_classes=classes, in_chans=3, pretrained=True, pretrained_file=file))
        for key, value in model.state_dict().items():
            assert value.shape[0] == classes if key.startswith("fc") else torch.equal(value, source.state_dict()[key])


def test_a_new_head_is_initialised_by_the_runs_own_seed(tmp_path: Path) -> None:
    save_file(build_model(model_config(num_classes=1000, in_chans=3)).state_dict(), tmp_path / "imagenet.safetensors")

    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        cfg = model_config(in_chans=3, pretrained_file=str(tmp_path / "imagenet.safetensors"))
        return build_model(cfg).state_dict()["fc.weight"]

    assert torch.equal(head(0), head(0))
    assert not torch.equal(head(0), head(1))


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    other = {"stem.weight": torch.zeros(4, 3, 7, 7), "conv1.weight": torch.randn(4, 3, 3, 3)}
    save_file(other, tmp_path / "other.safetensors")
    save_file({"unknown": torch.zeros(3)}, tmp_path / "unknown.safetensors")
    with pytest.raises(MmpError, match=r"other\.safetensors: not the weights of model\.name=resnet18"):
        build_model(model_config(in_chans=3, pretrained_file=str(tmp_path / "other.safetensors")))
    with pytest.raises(
        MmpError, match=r"unknown\.safetensors: not the weights .* none for \d+ layers.*'conv1\.weight'"
    ):
        build_model(model_config(in_chans=3, pretrained_file=str(tmp_path / "unknown.safetensors")))
    with pytest.raises(MmpError, match=r"model\.pretrained_file=.*nowhere\.pth: no such file"):
        build_model(model_config(pretrained_file=str(tmp_path / "nowhere.pth")))


def test_pretrained_weights_that_do_not_exist_are_explained_in_one_sentence() -> None:
    with pytest.raises(MmpError, match=r"vgg11_bn_small with pretrained weights: No pretrained.*pretrained_file"):
        build_model(ModelConfig(name="vgg11_bn_small", num_classes=10, pretrained=True))


class Evil:
    """An object whose pickle creates a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained", "cache_dir"]
)
def test_no_argument_of_a_model_loads_a_file(key: str, tmp_path: Path) -> None:
    torch.save({"fc.weight": Evil(tmp_path / "executed")}, tmp_path / "evil.pt")
    with pytest.raises(MmpError, match=rf"model\.kwargs\.{key}: an argument .* must not load .* model\.checkpoint"):
        build_model(model_config(kwargs={**TINY, key: str(tmp_path / "evil.pt")}))
    assert not (tmp_path / "executed").exists()


def repacked(content: bytes, at: float, flip: int) -> bytes:
    """Return a file of torch.save with one byte of its pickle changed, and with checksums that match again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive, io.BytesIO() as changed:
        with zipfile.ZipFile(changed, "w") as other:
            for name in archive.namelist():
                data = bytearray(archive.read(name))
                if name.endswith("data.pkl"):
                    data[int(at * len(data))] ^= flip
                other.writestr(name, bytes(data))
        return changed.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "signed zip", "legacy"])
def test_a_damaged_checkpoint_is_an_error_of_ours_whichever_byte_is_changed(form: str, tmp_path: Path) -> None:
    model, path, numbers = nn.Linear(3, 2), tmp_path / "x.ckpt", random.Random(0)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, path, _use_new_zipfile_serialization=form != "legacy")
    content, refused = path.read_bytes(), 0
    for _ in range(300):
        at, flip = numbers.random(), numbers.randrange(1, 256)
        changed = bytearray(content)
        changed[int(at * len(content))] ^= flip
        path.write_bytes(repacked(content, at, flip) if form == "signed zip" else changed)
        try:
            load_weights(model, path)
        except MmpError:
            refused += 1
    assert refused > 100


def test_values_of_a_zip_are_checked_against_their_checksum(tmp_path: Path) -> None:
    model, path = nn.Linear(3, 2), tmp_path / "x.ckpt"
    torch.save(model.state_dict(), path)
    content = path.read_bytes()
    at = content.index(model.bias.detach().numpy().tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(MmpError, match=r"x\.ckpt: cannot be read: .* does not match its checksum"):
        load_weights(model, path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({7: torch.zeros(2)}, "unexpected 7"),
        ({"bias": 3}, r"bias is not a plain tensor \(int\)"),
        ({"bias": torch.zeros(2).to_sparse()}, r"bias is not a plain tensor \(sparse_coo"),
        ({"bias": torch.quantize_per_tensor(torch.zeros(2), 1, 0, torch.qint8)}, r"plain tensor \(quantized tensor"),
        ({"bias": torch.zeros(2, device="meta")}, r"bias is not a plain tensor \(.* on meta\)"),
        ({"bias": torch.zeros(2, dtype=torch.complex64)}, "bias is torch.complex64 instead of torch.float32"),
        ({"bias": torch.zeros(2, dtype=torch.int64)}, "bias is torch.int64 instead of torch.float32"),
        ({"bias": torch.zeros(2, dtype=torch.bool)}, "bias is torch.bool instead of torch.float32"),
    ],
    ids=str,
)
def test_weights_that_are_not_plain_floats_are_refused(change: dict[Any, Any], part: str, tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    torch.save({**model.state_dict(), **change}, tmp_path / "x.ckpt")
    with pytest.raises(MmpError, match=part):
        load_weights(model, tmp_path / "x.ckpt")


def test_a_skeleton_has_shapes_and_no_memory() -> None:
    model = build_skeleton(model_config())
    assert all(p.is_meta for p in model.parameters())
    assert [p.shape for p in model.parameters()] == [p.shape for p in build_model(model_config()).parameters()]


def train_config(name: str, data: dict[str, Any] | None = None, **model: Any) -> TrainConfig:
    return TrainConfig(model=ModelConfig(name=name, **model), data=DataConfig(name="x", channels=3, **(data or {})))


def test_settings_that_the_data_leave_open_come_from_timm() -> None:
    config = train_config("swin_tiny_patch4_window7_224")
    fill_input(config)
    data = config.data
    assert (data.image_size, data.interpolation, data.crop_pct) == (224, "bicubic", 0.9)
    assert data.mean == pytest.approx([0.485, 0.456, 0.406])
    assert data.std == pytest.approx([0.229, 0.224, 0.225])
    config = train_config("vgg11_bn_small")
    fill_input(config)
    assert config.data.image_size == 32
    config = train_config("resnet18", {"image_size": 64, "mean": [0.1, 0.2, 0.3], "crop_pct": 1.0})
    fill_input(config)
    assert (config.data.image_size, config.data.mean, config.data.crop_pct) == (64, [0.1, 0.2, 0.3], 1.0)


def test_an_image_size_that_the_model_does_not_accept_is_an_error() -> None:
    with pytest.raises(MmpError, match=r"data\.image_size=32, but swin_tiny_patch4_window7_224 is built for 224"):
        fill_input(train_config("swin_tiny_patch4_window7_224", {"image_size": 32}))
    fill_input(train_config("swin_tiny_patch4_window7_224", {"image_size": 64}, kwargs={"img_size": 64}))
    grey = train_config("resnet18")
    grey.data.channels = 1
    with pytest.raises(MmpError, match=r"data\.mean=null, but timm states 3 channels for resnet18, not 1"):
        fill_input(grey)


def test_a_checkpoint_of_another_architecture_is_refused_with_the_differences(tmp_path: Path) -> None:
    state = build_model(model_config(num_classes=5)).state_dict()
    state["extra"] = torch.zeros(1)
    del state["conv1.weight"]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(MmpError, match=r"missing conv1\.weight; unexpected extra; fc\.weight is \(5, 4\) instead of"):
        load_weights(build_model(model_config()), tmp_path / "other.safetensors")


@pytest.mark.slow
def test_a_model_that_caches_can_be_scored_and_copied() -> None:
    model = timm.create_model("levit_128s", num_classes=3)
    layers = prunable_layers(model)
    batches = [(torch.randn(2, 3, 224, 224), torch.tensor([0, 2]))] * 2
    statistics = collect(model, prunable_parameters(model, layers), batches, nn.CrossEntropyLoss(), {"gradient"})
    assert all(torch.isfinite(gradient).all() for gradient in statistics["gradient"].values())
    copied = copy.deepcopy(model)  # fails if a cached tensor is part of an autograd graph
    assert all(torch.equal(value, copied.state_dict()[name]) for name, value in model.state_dict().items())
