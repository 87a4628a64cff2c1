"""Checkpoint files: the content decides the format, and what is no checkpoint is refused with the reason."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import io
import pathlib
import pickle
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from mmp.errors import MmpError
from mmp.models.checkpoint_file import read_groups


class Colour(enum.Enum):
    RED = 1


class AttributeDict(dict[str, Any]):
    """A dictionary of a class that a reader does not have, as of Lightning's hyper-parameters."""


class Averager:
    """An object of a class that a reader does not have."""

    def __init__(self, decay: float) -> None:
        self.decay = decay


OBJECTS = {
    "namespace": argparse.Namespace(lr=0.1),
    "numpy scalar": np.float64(91.2),
    "numpy array": np.ones(3),
    "random state": np.random.default_rng(0).bit_generator.state,
    "date": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "path": pathlib.PurePosixPath("data"),
    "enum": Colour.RED,
    "dictionary": AttributeDict(lr=0.1),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1, 2]),
    "partial": functools.partial(torch.optim.AdamW, lr=0.1),
    "omegaconf": OmegaConf.create({"model": {"layers": [1, 2]}}),
    "class": torch.optim.AdamW,
    "function": torch.nn.functional.relu,
    "method": Colour.RED.__str__,
    "own object": Averager(0.9),
    "frozenset": frozenset([1]),
    "bytes": b"\xff",
    "complex": 1j,
}


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_the_older_format_is_read_whatever_its_protocol(protocol: int, tmp_path: Path) -> None:
    path = saved({"a": torch.ones(1)}, tmp_path / "x", _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert read_groups(path, "x")[0].tensors == {"a": torch.ones(1)}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}], ids=str)
def test_weights_are_read_beside_objects_of_any_class(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    weights = {"half": torch.randn(2, 3).bfloat16(), "weight": nn.Parameter(torch.randn(4)), "view": torch.eye(3)[:, 1]}
    path = saved({"state_dict": weights, "beside": OBJECTS[name]}, tmp_path / "x.pth.tar", **options)
    groups = {group.key: group.tensors for group in read_groups(path, str(path))}
    assert groups["state_dict"].keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in groups["state_dict"].items())
    assert not any(value.requires_grad for value in groups["state_dict"].values())


@pytest.mark.parametrize("name", ["namespace", "bytes"])
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_a_gpu_are_read_without_one(
    legacy: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:3")
    content = {"state_dict": {"weight": torch.ones(2)}, "beside": OBJECTS[name]}
    path = saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    assert b"cuda:3" in path.read_bytes()
    (group,) = read_groups(path, "x")
    assert group.tensors["weight"].device.type == "cpu"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_network_that_was_saved_whole_has_the_names_of_its_state_dict(legacy: bool, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ModuleList([nn.Linear(2, 2)]))
    network.register_buffer("unsaved", torch.ones(1), persistent=False)
    network.register_parameter("none", None)
    path = saved({"net": network}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    (group,) = read_groups(path, "x")
    assert group.key == "net"
    assert group.tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(value, group.tensors[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("ending", ["safetensors", "pth", "bin", "ckpt", "weights"])
def test_the_content_decides_the_format(ending: str, tmp_path: Path) -> None:
    weights = {"weight": torch.randn(3)}
    save_file(weights, tmp_path / f"a.{ending}")
    torch.save(weights, tmp_path / f"b.{ending}")
    for name in ("a", "b"):
        (group,) = read_groups(tmp_path / f"{name}.{ending}", name)
        assert (group.key, list(group.tensors)) == ("", ["weight"])
        assert torch.equal(group.tensors["weight"], weights["weight"])


@pytest.mark.parametrize("length", [0x3C20, 0x7B20, 0x8B1F, 0x3C3C])
def test_the_length_of_a_header_is_not_taken_for_a_web_page(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = whole[8:end].ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + whole[end:])
    (group,) = read_groups(path, "x")
    assert torch.equal(group.tensors["weight"], torch.ones(2))


def test_mappings_are_found_at_any_place(tmp_path: Path) -> None:
    weight = {"weight": torch.ones(2)}
    content = {"a": {"b": {"c": weight}}, "list": [1, weight], 3: weight, "none": {}, **weight}
    keys = [group.key for group in read_groups(saved(content, tmp_path / "x.pth"), "x")]
    assert keys == ["", "a.b.c", "list.1", "3"]
    endless: dict[str, Any] = {"weight": torch.ones(2)}
    endless["self"] = endless
    assert read_groups(saved(endless, tmp_path / "x.pth"), "x")[0].key == ""


def tar_of(path: Path) -> bytes:
    with io.BytesIO() as content:
        with tarfile.open(fileobj=content, mode="w") as archive:
            archive.add(path, "weights.pth")
        return content.getvalue()


def zip_of(name: str) -> bytes:
    with io.BytesIO() as content:
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr(name, b"content")
        return content.getvalue()


def content_of(kind: str, whole: Path) -> bytes:
    content = whole.read_bytes()
    return {
        "empty": b"",
        "blank": b"\n\n",
        "page": b"\n<!DOCTYPE html><html>Sign in</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "cut": content[: len(content) // 2],
        "cut early": content[:20],
        "text": b"conv1.weight: 3\n",
        "numbers": bytes(range(128, 256)),
        "gzip": b"\x1f\x8b\x08\x00\x00\x00",
        "tar": tar_of(whole),
        "zip": zip_of("weights/layer.h5"),
        "torchscript": zip_of("model/constants.pkl"),
        "pickle": pickle.dumps({"conv1.weight": [1.0, 2.0]}),
        "json": b'{"metadata": {}, "weight_map": {}}',
        "hdf5": b"\x89HDF\r\n\x1a\n",
        "zeros": bytes(5000),
        "numpy": b"\x93NUMPY\x01\x00",
        "zstandard": b"\x28\xb5\x2f\xfd\x04",
        "onnx": b"\x08\x07\x12\x07pytorch",
        "safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00" + b'{"a": {"dtype": ' + b"\x00" * 40,
        "no tensors": saved({"epoch": 3}, whole.with_name("none.pth")).read_bytes(),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "cannot be read: the file is empty; copy or download it again"),
        ("blank", "cannot be read: the file is empty"),
        ("page", "it is a web page; download the file itself"),
        ("pointer", "it is a pointer of Git LFS; fetch the file itself with git lfs pull"),
        ("cut", "cannot be read: the file is cut off or damaged; copy or download it again"),
        ("cut early", "cannot be read: the file is cut off or damaged"),
        ("text", "it is no file of safetensors or torch.save; save the weights alone"),
        ("numbers", "it is a pickle that torch.save did not write"),
        ("onnx", "it is no file of safetensors or torch.save"),
        ("zeros", "it begins with zeros; copy or download it again"),
        ("numpy", "it is a NumPy array; convert"),
        ("zstandard", "it is compressed; unpack it"),
        ("gzip", "it is compressed; unpack it"),
        ("tar", "it is a tar archive; unpack it"),
        ("zip", "it is a zip archive of other files; unpack it"),
        ("torchscript", "it is a TorchScript archive; save its weights with torch.save(torch.jit.load('x.pth')"),
        ("pickle", "it is a pickle that torch.save did not write; load it where it was written, and save the weights"),
        ("json", "it is a JSON file; name the file of the weights"),
        ("hdf5", "it is an HDF5 file"),
        ("safetensors", "not a readable safetensors file"),
        ("no tensors", "contains no state_dict of plain tensors; save the weights alone"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_plain_line(kind: str, reason: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "x.pth", saved({"weight": torch.randn(100)}, tmp_path / "whole.pth")
    path.write_bytes(content_of(kind, whole))
    with pytest.raises(MmpError) as caught:
        read_groups(path, f"model.checkpoint={path}")
    message = str(caught.value)
    assert reason in message
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 320 + len(str(path))


def test_a_folder_or_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MmpError, match=r"this is a folder; name the file"):
        read_groups(tmp_path, "model.checkpoint=x")
    with pytest.raises(MmpError, match=r"model\.checkpoint=x: no such file"):
        read_groups(tmp_path / "nowhere.pth", "model.checkpoint=x")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_archive_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "x.pt")
    with pytest.raises(MmpError, match=r"TorchScript archive; save its weights with torch\.save\(torch\.jit\.load"):
        read_groups(tmp_path / "x.pt", "x")


def test_an_object_that_contains_itself_is_refused(tmp_path: Path) -> None:
    endless = Averager(0.9)
    endless.__dict__ = {"_parameters": {}, "_buffers": {}, "_modules": {"self": endless}}
    with pytest.raises(MmpError, match=r"cannot be read: an object in it contains itself"):
        read_groups(saved({"net": endless}, tmp_path / "x.pth"), "x")


@pytest.mark.slow
def test_a_damaged_file_of_unknown_objects_is_an_error_of_ours_whichever_byte_is_changed(tmp_path: Path) -> None:
    content = {"net": nn.BatchNorm2d(2), "args": argparse.Namespace(lr=0.1), "metric": np.float64(0.9)}
    path = saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=False)  # without checksums
    whole, numbers, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        changed = bytearray(whole)
        changed[numbers.randrange(len(whole))] ^= numbers.randrange(1, 256)
        path.write_bytes(changed)
        try:
            read_groups(path, "x")
        except MmpError as error:
            refused += 1
            assert str(error).isprintable()  # noqa: PT017
    assert refused > 50


def test_names_in_a_file_cannot_control_a_terminal(tmp_path: Path) -> None:
    content = {"\x1b[31mred": {"a\nb": torch.ones(1)}}
    (group,) = read_groups(saved(content, tmp_path / "x.pth"), "x")
    assert (group.key, list(group.entries)) == (r"\x1b[31mred", [r"a\nb"])
