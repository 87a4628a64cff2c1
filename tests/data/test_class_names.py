"""Class names: every reader states them in the order of the labels, where the files have them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets
from PIL import Image
from small_files import write_cifar10, write_cifar_batch, write_fashion_mnist, write_gtsrb

from mmp.config.schema import DataConfig
from mmp.data.module import ImageData
from mmp.errors import MmpError


def data_of(reader: str, root: Path | None, classes: int, **changes: Any) -> ImageData:
    basis = {"channels": 3, "image_size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_mode": "squash"}
    splits = {"validation": 0.25, "calibration": 0.25}
    values = {**basis, **splits, "root": root and str(root), "classes": classes, **changes}
    return ImageData(DataConfig(name=reader, reader=reader, **values), seed=0)


GREY = {"channels": 1, "mean": [0.5], "std": [0.5]}


def test_digits_have_their_digits_as_names() -> None:
    assert data_of("digits", None, 10, **GREY).class_names == tuple("0123456789")


def test_fashion_mnist_has_the_names_of_its_paper(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, train=200, test=20)
    names = data_of("fashion_mnist", tmp_path, 10, **GREY).class_names
    assert names == tuple(torchvision.datasets.FashionMNIST.classes)


def test_cifar_has_the_names_of_its_own_file_and_none_without_it(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    assert data_of("cifar10", tmp_path, 10).class_names is None
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = tmp_path / "cifar-10-batches-py" / "batches.meta"
    meta.write_bytes(pickle.dumps({"num_cases_per_batch": 10000, "label_names": names, "num_vis": 3072}, protocol=0))
    assert data_of("cifar10", tmp_path, 10).class_names == tuple(names)


def test_cifar100_has_the_names_of_the_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    for name, count in (("train", 1000), ("test", 100)):
        write_cifar_batch(folder / name, count, {"fine_labels": 100, "coarse_labels": 20})
    names = {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": list("abcdefghijklmnopqrst")}
    (folder / "meta").write_bytes(pickle.dumps(names))
    assert data_of("cifar100", tmp_path, 100).class_names == tuple(names["fine_label_names"])


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"names": []}), pickle.dumps(Path("a"))])
def test_a_damaged_file_of_names_is_named(content: bytes, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(content)
    with pytest.raises(MmpError, match=r"batches\.meta: not a list of CIFAR's classes .*get it again"):
        data_of("cifar10", tmp_path, 10)


@pytest.mark.slow
def test_traffic_signs_have_the_names_of_their_folders(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    names = data_of("gtsrb", tmp_path, 43).class_names
    assert names == tuple(f"{label:05d}" for label in range(43))


def test_class_folders_give_their_names_in_the_order_of_the_labels(tmp_path: Path) -> None:
    for level, name in enumerate(["10", "2", "a", "B"]):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (16, 16), (60 * level, i, 0)).save(folder / f"{i}.png")
    data = data_of("imagefolder", tmp_path, 4)
    assert data.class_names == ("10", "2", "B", "a")
    images, labels = next(iter(data.test_dataloader()))
    red = ((images[:, 0, 8, 8] * 0.5 + 0.5) * 255 / 60).round().int().tolist()
    assert [data.class_names[label] for label in labels] == [["10", "2", "a", "B"][level] for level in red]


def test_more_classes_than_the_labels_have_are_refused() -> None:
    with pytest.raises(MmpError, match=r"data\.classes=12, but the highest label .* digits is 9; set data\.classes=10"):
        data_of("digits", None, 12, **GREY)
