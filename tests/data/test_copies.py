"""Validation folders, and copies of images: in one split together, and reported if they are in two."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmp.config.schema import DataConfig
from mmp.data.copies import groups_of_copies
from mmp.data.module import ImageData

NUMBERS = {"classes": 2, "channels": 3, "image_size": 16, "mean": [0.5] * 3, "std": [0.5] * 3}


def data_of(root: Path, seed: int = 0, **changes: Any) -> ImageData:
    values = {**NUMBERS, "root": str(root), "validation": 0.2, "calibration": 0.2, **changes}
    return ImageData(DataConfig(**{"name": "images", "reader": "imagefolder", **values}), seed)


def draw(folder: Path, count: int, first: int = 0) -> None:
    """Draw different images of two classes; red tells them apart."""
    for label, name in enumerate(("a", "b")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            Image.new("RGB", (16, 16), (100 * label, i, 0)).save(folder / name / f"{i:03d}.png")


def paths_of(data: ImageData, split: str, root: Path) -> list[str]:
    order = sorted((root / "train").rglob("*.png"))
    return [str(order[i].relative_to(root / "train")) for i in data.indices[split]]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- validation folders ---


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_validation_folder_is_the_validation_split(
    name: str, in_memory: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path / "train", 20)
    without = data_of(tmp_path, in_memory=in_memory)
    draw(tmp_path / name, 3, first=100)
    data = data_of(tmp_path, in_memory=in_memory)
    assert data.samples == {"train": 26, "validation": 6, "calibration": 6, "test": 8}
    assert "validation" not in data.indices
    images, labels = next(iter(data.val_dataloader()))
    assert ((images[:, 1, 0, 0] * 0.5 + 0.5) * 255).round().tolist() == [100, 101, 102] * 2
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.fingerprint != without.fingerprint
    assert warnings_of(caplog) == []


def test_with_folders_of_all_splits_the_seed_decides_only_the_calibration_split(tmp_path: Path) -> None:
    for name, first in (("train", 0), ("val", 100), ("test", 200)):
        draw(tmp_path / name, 10, first)
    one, other = data_of(tmp_path), data_of(tmp_path, seed=1)
    assert one.samples == other.samples == {"train": 16, "validation": 20, "calibration": 4, "test": 20}
    assert set(one.indices) == {"train", "calibration"}
    assert not np.array_equal(one.indices["calibration"], other.indices["calibration"])
    assert one.fingerprint == other.fingerprint


def test_a_validation_folder_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    draw(tmp_path / "train", 10)
    draw(tmp_path / "val", 2, 100)
    before = data_of(tmp_path).fingerprint
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "val" / "a" / "100.png")
    assert data_of(tmp_path).fingerprint != before


# --- copies ---


def test_groups_are_of_equal_content_and_label() -> None:
    groups = groups_of_copies(["x", "y", "x", "x", "z", "y"], [0, 0, 0, 1, 1, 0])
    assert groups is not None
    assert groups.tolist() == [0, 1, 0, 3, 4, 1]
    assert groups_of_copies(["x", "y", "x"], [0, 0, 1]) is None


@pytest.mark.parametrize("in_memory", [False, True])
def test_copies_in_a_class_go_into_one_split(in_memory: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "train", 20)
    for name in ("a", "b"):
        for i in range(0, 20, 2):
            shutil.copy(tmp_path / "train" / name / f"{i:03d}.png", tmp_path / "train" / name / f"copy {i:03d}.png")
    for seed in range(3):
        data = data_of(tmp_path, seed, in_memory=in_memory)
        assert sum(data.samples.values()) == 60
        split_of = {path: split for split in data.indices for path in paths_of(data, split, tmp_path)}
        for name in ("a", "b"):
            for i in range(0, 20, 2):
                assert split_of[f"{name}/{i:03d}.png"] == split_of[f"{name}/copy {i:03d}.png"]
    assert warnings_of(caplog) == []


def test_splits_without_copies_are_those_of_every_version(tmp_path: Path) -> None:
    draw(tmp_path / "train", 10)
    indices = {split: chosen.tolist() for split, chosen in data_of(tmp_path).indices.items()}
    assert indices == {
        "train": [1, 2, 7, 8, 9, 10, 12, 16, 18, 19],
        "validation": [3, 6, 15],
        "calibration": [4, 11, 13],
        "test": [0, 5, 14, 17],
    }


def test_copies_in_two_folders_are_reported_with_a_pair(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "train", 10)
    draw(tmp_path / "test", 3, first=8)
    draw(tmp_path / "val", 1, first=100)
    data_of(tmp_path)
    (warning,) = warnings_of(caplog)
    one, other = tmp_path / "train/a/008.png", tmp_path / "test/a/008.png"
    assert warning.startswith(f"images that are copies of one in another split: 4, such as {one} (")
    assert f" and {other} (test); remove" in warning


def test_a_copy_of_another_name_and_a_link_are_copies_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "train", 10)
    draw(tmp_path / "test", 2, first=100)
    shutil.copy(tmp_path / "train" / "a" / "001.png", tmp_path / "test" / "a" / "renamed.png")
    (tmp_path / "test" / "b" / "link.png").symlink_to(tmp_path / "train" / "b" / "002.png")
    data_of(tmp_path)
    assert "copies of one in another split: 2, such as" in warnings_of(caplog)[0]


def test_one_picture_in_two_classes_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "train", 10)
    original, copy = tmp_path / "train" / "a" / "003.png", tmp_path / "train" / "b" / "wrong.png"
    shutil.copy(original, copy)
    data_of(tmp_path)
    found = [text for text in warnings_of(caplog) if "another class" in text]
    assert len(found) == 1
    assert found[0].startswith("images that are copies of one in another class: 1, such as ")
    assert str(original) in found[0]
    assert str(copy) in found[0]


def test_copies_that_leave_too_few_images_are_divided_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path / "train", 1)
    for name in ("a", "b"):
        for i in range(1, 12):
            shutil.copy(tmp_path / "train" / name / "000.png", tmp_path / "train" / name / f"{i:03d}.png")
    assert sum(data_of(tmp_path).samples.values()) == 24
    cannot, across = warnings_of(caplog)
    assert cannot.startswith("copies of one image may be in two splits, since they cannot be kept together (data=")
    assert across.startswith("images that are copies of one in another split: ")


def test_copies_of_traffic_signs_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from small_files import write_gtsrb

    write_gtsrb(tmp_path, frames=1)
    signs = tmp_path / "gtsrb" / "GTSRB"
    shutil.copy(signs / "Training" / "00007" / "00000_00000.ppm", signs / "Final_Test" / "Images" / "00003.ppm")
    data_of(tmp_path, reader="gtsrb", classes=43, validation=0.25, calibration=0.25, crop_mode="squash")
    assert "copies of one in another split: 1, such as" in "\n".join(warnings_of(caplog))
