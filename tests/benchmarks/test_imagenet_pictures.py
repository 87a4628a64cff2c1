"""Pictures with one of each class: their splits and their list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import imagenet_pictures
from benchmarks.imagenet_pictures import OnePictureEach, divided, read_labels
from mmp.config.schema import DataConfig
from mmp.errors import MmpError


def test_splits_share_no_picture_and_test_pictures_are_the_same_for_every_seed() -> None:
    first, second = (divided(1000, seed, Path()) for seed in (0, 1))
    assert {name: len(indices) for name, indices in first.items()} == {
        "train": 0, "validation": 244, "calibration": 256, "test": 500,
    }  # fmt: skip
    assert sorted(np.concatenate([*first.values()]).tolist()) == [*range(1000)]
    assert first["test"].tolist() == second["test"].tolist()
    assert first["calibration"].tolist() != second["calibration"].tolist()
    with pytest.raises(MmpError, match="has 756 pictures"):
        divided(756, 0, Path())


def test_pictures_have_the_labels_of_their_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet_pictures, "TEST", 4)
    monkeypatch.setattr(imagenet_pictures, "CALIBRATION", 3)
    for label in range(9):
        Image.new("RGB", (40, 32), (20 * label, 0, 0)).save(tmp_path / f"{label}.png")
    (tmp_path / "labels.tsv").write_text("".join(f"{label}.png\t{label}\n" for label in range(9)))
    cfg = DataConfig(
        "pictures", "imagefolder", str(tmp_path), classes=9, channels=3, image_size=32, mean=[0.0] * 3, std=[1.0] * 3,
        in_memory=True, workers=0, augment=None,
    )  # fmt: skip
    data = OnePictureEach(cfg, 0)
    assert data.samples == {"train": 0, "validation": 2, "calibration": 3, "test": 4}
    loaders = (data.val_dataloader(), data.calibration_dataloader(), data.test_dataloader())
    seen = {
        int(y): float(x[0].mean())
        for loader in loaders
        for images, labels in loader
        for x, y in zip(images, labels, strict=True)
    }
    assert seen == pytest.approx({label: 20 * label / 255 for label in range(9)}, abs=1e-6)


@pytest.mark.parametrize("content", [None, "a.png 3\n", "a.png\tcat\n", "a.png\t9\n", "a.png\t-1\n"])
def test_a_list_that_is_missing_or_damaged_is_named(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "labels.tsv").write_text(content)
    with pytest.raises(MmpError, match=r"labels\.tsv: "):
        read_labels(tmp_path, 9)
