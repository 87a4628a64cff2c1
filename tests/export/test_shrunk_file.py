"""Shrunk files: the smaller network is built again from them, bit for bit, and damaged or foreign ones are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from partly import partly_slow
from safetensors import safe_open
from torch import Tensor, nn

from mmp import MmpError, Removal, channel_groups, channel_masks, load_shrunk, load_sparse, save_sparse, shrink
from mmp.config.schema import ModelConfig
from mmp.export.shrunk_file import FORMAT, save_shrunk
from mmp.models.networks import build_bare

SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
LEVIT = {"img_size": 128, "embed_dim": [16, 24, 32], "key_dim": 8, "num_heads": [2, 3, 4], "depth": [1, 1, 1]}
RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 24], "stem_width": 8}
MODELS: dict[str, tuple[ModelConfig, int]] = {
    "vgg": (ModelConfig("vgg11_bn_small", num_classes=10), 32),
    "kwargs": (ModelConfig("resnet18", num_classes=5, kwargs=RESNET), 32),
    "one channel": (ModelConfig("resnet18", num_classes=5, in_chans=1, kwargs=RESNET), 32),
    "swin": (ModelConfig("swin_tiny_patch4_window7_224", num_classes=5, kwargs=SWIN), 32),
    "levit": (ModelConfig("levit_128s", num_classes=5, kwargs=LEVIT), 128),
}


def smaller_one(
    config: ModelConfig, size: int, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Removal, Tensor]:
    """Return a timm model without half of the channels of every group, its removal, and images."""
    torch.manual_seed(0)
    network, images = build_bare(config).eval(), torch.randn(3, config.in_chans, size, size)
    groups = channel_groups(network, images[:1])
    scores = {name: p.detach().abs() for name, p in network.named_parameters() if p.dim() > 1}
    masks = channel_masks(groups, scores, {group.name: 0.5 for group in groups}, multiple=1)
    with torch.no_grad():
        for name, mask in masks.items():
            network.get_parameter(name).mul_(mask)
    smaller, removal = shrink(network.to(dtype), images.to(dtype))
    assert removal.removed
    assert not removal.kept
    return smaller, removal, images.to(dtype)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, size = MODELS["kwargs"]
    smaller, removal, _ = smaller_one(config, size)
    path = tmp_path_factory.mktemp("shrunk") / "model.shrunk.safetensors"
    save_shrunk(path, smaller, config, removal.attributes, {"classes": ["a", "b", "c", "d", "é"]})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", partly_slow(MODELS, quick=("kwargs", "one channel", "swin")))
def test_the_network_is_built_again_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config, size = MODELS[name]
    smaller, removal, images = smaller_one(config, size, dtype)
    save_shrunk(tmp_path / "x", smaller, config, removal.attributes)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    loaded = load_shrunk(tmp_path / "x")
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    assert torch.equal(loaded(images), smaller(images))
    expected, found = smaller.state_dict(), loaded.state_dict()
    assert list(found) == list(expected)
    assert all(found[n].dtype == value.dtype and torch.equal(found[n], value) for n, value in expected.items())
    attributes = {path: vars(module) for path, module in loaded.named_modules()}
    assert all(attributes[path][key] == v for path, some in removal.attributes.items() for key, v in some.items())
    assert (tmp_path / "x").stat().st_size < 0.8 * sum(
        value.numel() * value.element_size() for value in build_bare(config).to(dtype).state_dict().values()
    )


def test_the_network_can_be_trained_further(written: Path) -> None:
    loaded = load_shrunk(str(written)).train()
    loaded(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in loaded.parameters())


def test_buffers_outside_the_state_are_stored_if_they_differ(tmp_path: Path) -> None:
    config, size = MODELS["swin"]
    torch.manual_seed(0)
    network, images = build_bare(config).eval(), torch.randn(2, 3, size, size)
    names = {name for name, _ in network.named_buffers()} - network.state_dict().keys()
    assert names, "the model has such buffers"
    save_shrunk(tmp_path / "x", network, config, {})
    assert safetensors.torch.load_file(tmp_path / "x").keys() == network.state_dict().keys()
    changed = network.layers[0].blocks[0].attn
    changed.relative_position_index = changed.relative_position_index.flip(0)
    save_shrunk(tmp_path / "x", network, config, {})
    assert torch.equal(load_shrunk(tmp_path / "x")(images), network(images))


def test_the_header_says_what_is_needed_to_use_the_file(written: Path) -> None:
    with safe_open(written, framework="pt") as file:
        notes = json.loads(file.metadata()["mmp"])
    assert notes["model"] == {"name": "resnet18", "num_classes": 5, "in_chans": 3, "kwargs": RESNET}
    assert notes["classes"][4] == "é"
    assert notes["attributes"]["layer1.0.conv1"]["out_channels"] == 4
    assert notes["format"] == FORMAT


@pytest.mark.slow
def test_the_same_network_gives_the_same_bytes(written: Path, tmp_path: Path) -> None:
    config, size = MODELS["kwargs"]
    smaller, removal, _ = smaller_one(config, size)
    save_shrunk(tmp_path / "x", smaller, config, removal.attributes, {"classes": ["a", "b", "c", "d", "é"]})
    assert (tmp_path / "x").read_bytes() == written.read_bytes()


def test_every_changed_byte_and_every_length_is_an_error(written: Path, tmp_path: Path) -> None:
    content, path = written.read_bytes(), tmp_path / "x"
    step = len(content) // 60
    for at in [*range(0, 400, 20), *range(400, len(content), step)]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(MmpError, match=r"do not match their checksum|not a shrunk file") as raised:
            load_shrunk(path)
        assert "\n" not in str(raised.value)
        path.write_bytes(content[:at])
        with pytest.raises(MmpError):
            load_shrunk(path)
    path.write_bytes(content + b"0")
    with pytest.raises(MmpError, match="do not match their checksum"):
        load_shrunk(path)


def signed(tensors: dict[str, Tensor], notes: dict[str, Any]) -> bytes:
    """Return a file with a valid checksum and any content."""
    content = safetensors.torch.save(tensors, {"mmp": json.dumps({"sha256": "0" * 64, "format": FORMAT, **notes})})
    return content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t, n: n["model"].update(name="resnet99"), "timm has no such model"),
        (lambda t, n: n["model"].update(name="hf-hub:x/y"), "no name of timm's registry"),
        (lambda t, n: n["model"].update(name=3), "not a well-formed shrunk file"),
        (lambda t, n: n["model"].update(name="resnet50"), r"tensor 'layer.*' of ResNet is missing"),
        (lambda t, n: n["model"]["kwargs"].update(checkpoint_path="/x"), "must not load weights"),
        (lambda t, n: n["model"]["kwargs"].update(pretrained=True), "must not load weights"),
        (
            lambda t, n: n["model"].update(num_classes=4),
            r"'fc.(bias|weight)' has shape \(5,.*, but ResNet has at most \(4,",
        ),
        (lambda t, n: n["model"].update(odd=4), "not a well-formed shrunk file"),
        (lambda t, n: n.pop("model"), "not a well-formed shrunk file"),
        (lambda t, n: n.pop("attributes"), "not a well-formed shrunk file"),
        (lambda t, n: n.update(attributes=[1]), "not a well-formed shrunk file"),
        (lambda t, n: n.update(attributes={"fc": 1}), "not a well-formed shrunk file"),
        (lambda t, n: n["attributes"].update(nowhere={"out_channels": 3}), "'out_channels' of module 'nowhere'"),
        (lambda t, n: n["attributes"].update(fc={"forward": 3}), "'forward' of module 'fc'"),
        (lambda t, n: n["attributes"].update(fc={"out_features": -3}), "is -3, but must be"),
        (lambda t, n: t.pop("fc.bias"), "'fc.bias' of ResNet is missing"),
        (lambda t, n: t.update(odd=torch.zeros(1)), "'odd' is not in ResNet"),
        (lambda t, n: t.update({"fc.bias": torch.zeros(5, 1)}), "'fc.bias' has shape"),
        (lambda t, n: t.update({"fc.bias": torch.zeros(5, dtype=torch.int64)}), "'fc.bias' is torch.int64"),
        (lambda t, n: n.update(format="mmp-shrunk-2"), "has format 'mmp-shrunk-2'.*update mmp"),
    ],
)
def test_odd_content_is_refused_in_one_line(written: Path, tmp_path: Path, change: Any, part: str) -> None:
    tensors = safetensors.torch.load_file(written)
    with safe_open(written, framework="pt") as file:
        notes = json.loads(file.metadata()["mmp"])
    change(tensors, notes)
    (tmp_path / "x").write_bytes(signed(tensors, {key: v for key, v in notes.items() if key != "sha256"}))
    with pytest.raises(MmpError, match=part) as raised:
        load_shrunk(tmp_path / "x")
    assert str(raised.value).startswith(str(tmp_path / "x"))
    assert "\n" not in str(raised.value)


def test_files_of_others_are_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(MmpError, match="no such file"):
        load_shrunk(tmp_path / "nowhere")
    with pytest.raises(MmpError, match="no such file"):
        load_shrunk(tmp_path)
    tensors = {"x": torch.zeros(2)}
    safetensors.torch.save_file(tensors, tmp_path / "plain")
    for content in ((tmp_path / "plain").read_bytes(), b"", b"PK\x03\x04", b"\xff" * 100):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(MmpError, match="not a shrunk file of mmp"):
            load_shrunk(tmp_path / "x")
    save_sparse(tmp_path / "sparse", tensors)
    with pytest.raises(MmpError, match=r"not a shrunk file, but a sparse file; load it with mmp\.load_sparse"):
        load_shrunk(tmp_path / "sparse")
    with pytest.raises(MmpError, match=r"not a sparse file, but a shrunk file; load it with mmp\.load_shrunk"):
        load_sparse(written)
