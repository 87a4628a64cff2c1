"""Sheets of CIFAR-10's pictures become its binary version."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.cifar10_sheets import CLASSES, convert
from mmp.config.schema import DataConfig
from mmp.data.readers import READERS
from mmp.errors import MmpError


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        Image.fromarray(random.integers(0, 256, (4, 1024, 3), np.uint8)).save(folder / f"{name}.png")
    (folder / "train_lables.json").write_text(json.dumps([i % 10 for i in range(20)]))
    (folder / "test_lables.json").write_text(json.dumps([9, 8, 7, 6]))
    return folder


def test_sheets_are_read_as_cifar10(package: Path, tmp_path: Path) -> None:
    convert(package, tmp_path / "data")
    norm = {"mean": [0.0] * 3, "std": [1.0] * 3}
    cfg = DataConfig(name="cifar10", reader="cifar10", root=str(tmp_path / "data"), classes=10, image_size=32, **norm)
    source = READERS["cifar10"](cfg)
    assert source.classes == CLASSES
    assert source.plain.labels.tolist() == [i % 10 for i in range(20)]
    assert source.test.labels.tolist() == [9, 8, 7, 6]
    sheet = np.asarray(Image.open(package / "data_batch_3.png"))
    picture = source.plain.images[4 * 2 + 1].numpy()  # the second of the third sheet
    assert np.array_equal(picture[:, 5, 7], sheet[1, 5 * 32 + 7])


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("test_batch.png", b"nothing", "no sheet of pictures"),
        ("train_lables.json", b"[1, 2", "no list of labels"),
        ("train_lables.json", b"[1, 10]", "labels must be numbers from 0 to 9"),
        ("test_lables.json", b"[1, 2, 3]", "3 labels, but 4 pictures"),
    ],
)
def test_a_damaged_package_writes_nothing(
    file: str, content: bytes, reason: str, package: Path, tmp_path: Path
) -> None:
    (package / file).write_bytes(content)
    with pytest.raises(MmpError, match=rf"{file}: {reason}"):
        convert(package, tmp_path / "data")
    assert not (tmp_path / "data").exists()
