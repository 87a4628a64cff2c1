"""CIFAR, GTSRB and image folders: small files in the real formats, augmentation, and errors that name the file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_files import write_cifar10, write_cifar_batch, write_cifar_records, write_gtsrb

from mmp.config.schema import DataConfig
from mmp.data.images import AugmentedImages, TensorImages, transform_of
from mmp.data.module import ImageData, split_indices
from mmp.data.readers import READERS
from mmp.errors import MmpError

NATIVE = {"channels": 3, "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "batch_size": 16}
IMAGES = {"cifar10": 60, "cifar100": 1000}


def config(reader: str, root: Path, **changes: Any) -> DataConfig:
    classes = {"cifar10": 10, "cifar100": 100, "gtsrb": 43}.get(reader, 2)
    return DataConfig(name=reader, reader=reader, root=str(root), **{**NATIVE, "classes": classes, **changes})


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10_is_read_from_its_batches(protocol: int, tmp_path: Path) -> None:
    pixels = write_cifar10(tmp_path, protocol)
    data = ImageData(config("cifar10", tmp_path), seed=0)
    assert data.samples == {"train": 240, "validation": 30, "calibration": 30, "test": 60}
    images, labels = next(iter(data.test_dataloader()))
    assert labels.tolist() == [i % 10 for i in range(60)]
    expected = (pixels["test_batch"] / 255 - 0.5) / 0.5
    assert np.allclose(images.numpy(), expected, atol=1e-5)
    train = READERS["cifar10"](config("cifar10", tmp_path)).plain
    assert isinstance(train, TensorImages)
    assert np.array_equal(train.images[60:120].numpy(), pixels["data_batch_2"])


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    for name, count in (("train", 1000), ("test", 100)):
        write_cifar_batch(tmp_path / "cifar-100-python" / name, count, {"fine_labels": 100, "coarse_labels": 20})
    data = ImageData(config("cifar100", tmp_path, calibration=0.1), seed=0)
    assert data.samples == {"train": 800, "validation": 100, "calibration": 100, "test": 100}
    _, labels = next(iter(data.test_dataloader()))
    assert labels.max() == 99


def test_the_binary_version_of_cifar10_is_the_same_data(tmp_path: Path) -> None:
    pixels = write_cifar10(tmp_path / "python")
    for name, images in pixels.items():
        write_cifar_records(tmp_path / "binary/cifar-10-batches-bin" / f"{name}.bin", images, np.arange(60) % 10)
    (tmp_path / "binary/cifar-10-batches-bin/batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    found, expected = (READERS["cifar10"](config("cifar10", tmp_path / version)) for version in ("binary", "python"))
    for one, other in ((found.plain, expected.plain), (found.test, expected.test)):
        assert isinstance(one, TensorImages)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    assert found.classes == tuple("abcdefghij")


def test_the_binary_version_of_cifar100_has_fine_labels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32), np.uint8)
    for name in ("train", "test"):
        path = tmp_path / f"cifar-100-binary/{name}.bin"
        write_cifar_records(path, pixels, np.arange(200) % 20, np.arange(200) % 100)
    source = READERS["cifar100"](config("cifar100", tmp_path))
    assert isinstance(source.test, TensorImages)
    assert source.test.labels.tolist() == [i % 100 for i in range(200)]
    assert source.classes is None


def test_damaged_records_of_cifar_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        write_cifar_records(folder / name, np.zeros((20, 3, 32, 32), np.uint8), np.arange(20) % 10)
    path = folder / "data_batch_2.bin"
    content = path.read_bytes()
    damaged = {
        "has 61000 bytes, no multiple of the 3073": content[:61000],
        "has 0 bytes": b"",
        "has the label 255, but there are 10 classes": b"\xff" + content[1:],
    }
    for reason, changed in damaged.items():
        path.write_bytes(changed)
        with pytest.raises(MmpError, match=rf"data_batch_2\.bin: {reason}"):
            READERS["cifar10"](config("cifar10", tmp_path))
    path.unlink()
    with pytest.raises(MmpError, match=r"data_batch_2\.bin: no such file"):
        READERS["cifar10"](config("cifar10", tmp_path))


def test_cifar_is_enlarged_for_a_model_with_larger_input(tmp_path: Path) -> None:
    pixels = write_cifar10(tmp_path)
    cfg = config("cifar10", tmp_path, image_size=64, interpolation="bilinear", crop_pct=1.0)
    images, _ = next(iter(ImageData(cfg, seed=0).test_dataloader()))
    assert images.shape == (60, 3, 64, 64)
    small = torch.nn.functional.avg_pool2d(images[:1], 4).numpy()
    means = (pixels["test_batch"][:1].reshape(1, 3, 16, 2, 16, 2).mean((3, 5)) / 255 - 0.5) / 0.5
    assert np.corrcoef(small.ravel(), means.ravel())[0, 1] > 0.95


def test_damaged_batches_are_named_and_malicious_ones_execute_nothing(tmp_path: Path) -> None:
    data = write_cifar10(tmp_path)["data_batch_3"].reshape(60, 3072)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    damaged = {
        "damaged": path.read_bytes()[:5000],
        "damaged ": b"",
        "which no batch of images needs": pickle.dumps({"data": Payload(), "labels": []}),
        "60 images but 59 labels": pickle.dumps({"data": data, "labels": [0] * 59}),
        "labels": pickle.dumps({"data": data}),
    }
    for reason, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(MmpError, match=f"data_batch_3: .*{reason.strip()}"):
            ImageData(config("cifar10", tmp_path), seed=0)
    assert not (tmp_path / "executed").exists()
    path.unlink()
    with pytest.raises(MmpError, match=r"data_batch_3: no such file; .*data\.download=true"):
        ImageData(config("cifar10", tmp_path), seed=0)
    with pytest.raises(MmpError, match=r"cifar-100-python: no such folder; .*data\.download=true.*data\.root"):
        ImageData(config("cifar100", tmp_path), seed=0)


def test_channels_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    with pytest.raises(MmpError, match=r"data\.channels=1, but images of cifar10 have 3"):
        ImageData(config("cifar10", tmp_path, channels=1, mean=[0.5], std=[0.5]), seed=0)


# --- German traffic signs ---


def of_gtsrb(root: Path, **changes: Any) -> DataConfig:
    # There are 43 classes with four tracks each, so the smallest stratified split is a quarter.
    return config("gtsrb", root, **{"validation": 0.25, "calibration": 0.25, "crop_mode": "squash", **changes})


@pytest.mark.slow
def test_gtsrb_keeps_the_frames_of_a_sign_together(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    data = ImageData(of_gtsrb(tmp_path), seed=0)
    assert sum(data.samples.values()) == 43 * 4 * 4 + 43
    groups = READERS["gtsrb"](of_gtsrb(tmp_path)).groups
    assert groups is not None
    assert len(set(groups.tolist())) == 43 * 4
    parts = {name: set(groups[indices].tolist()) for name, indices in data.indices.items()}
    assert not parts["train"] & parts["validation"]
    assert not parts["train"] & parts["calibration"]
    assert not parts["validation"] & parts["calibration"]
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (43, 3, 32, 32)
    red = ((images[:, 0, 16, 16] * 0.5 + 0.5) * 255).round()
    assert torch.equal(red, 5.0 * labels)  # labels come from the table, not from the order of the files


def test_gtsrb_with_a_missing_or_empty_class_is_an_error(tmp_path: Path) -> None:
    write_gtsrb(tmp_path, tracks=1, frames=1)
    training = tmp_path / "gtsrb" / "GTSRB" / "Training"
    (training / "00007").rename(tmp_path / "elsewhere")
    for file in (training / "00011").glob("*.ppm"):
        file.unlink()
    with pytest.raises(MmpError, match=r"Training: no images of class 00007, 00011; data\.classes=43"):
        ImageData(of_gtsrb(tmp_path), seed=0)
    with pytest.raises(MmpError, match=r"unexpected folder 00040, 00041, 00042"):
        READERS["gtsrb"](of_gtsrb(fresh(tmp_path / "b"), classes=40))


def fresh(root: Path) -> Path:
    write_gtsrb(root, tracks=1, frames=1)
    return root


def test_gtsrb_without_test_labels_or_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MmpError, match=r"Training: no such folder; .*data\.download=true"):
        ImageData(of_gtsrb(tmp_path), seed=0)
    write_gtsrb(tmp_path, tracks=1, frames=1)
    (tmp_path / "gtsrb" / "GT-final_test.csv").unlink()
    with pytest.raises(MmpError, match=r"GT-final_test\.csv are missing"):
        ImageData(of_gtsrb(tmp_path), seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_in_one_sentence(workers: int, tmp_path: Path) -> None:
    write_gtsrb(tmp_path, tracks=1, frames=1)
    broken = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "00005.ppm"
    broken.write_bytes(broken.read_bytes()[:200])
    source = READERS["gtsrb"](of_gtsrb(tmp_path))
    images: Any = iter(torch.utils.data.DataLoader(source.test, num_workers=workers))  # type: ignore[arg-type]
    with pytest.raises(MmpError) as raised:
        list(images)
    if workers:
        images._shutdown_workers()  # the garbage collector would wait for them for seconds, in any later test
    assert str(raised.value).startswith(f"{broken}: not a readable image")
    assert "\n" not in str(raised.value)


def test_a_test_file_that_is_no_image_is_named_before_the_training(tmp_path: Path) -> None:
    write_gtsrb(tmp_path, frames=1)
    broken = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "00005.ppm"
    broken.write_bytes(b"no image")
    with pytest.raises(MmpError, match=f"{broken}: not a readable image"):
        ImageData(of_gtsrb(tmp_path), seed=0)


@pytest.mark.slow
def test_small_traffic_signs_can_be_kept_in_memory_at_the_size_of_evaluation(tmp_path: Path) -> None:
    write_gtsrb(tmp_path, tracks=2, frames=2)
    chosen = {"augment": {"scale": [0.8, 1.0], "hflip": 0.0, "color_jitter": 0.2}, "crop_pct": 1.0}
    read, kept = (READERS["gtsrb"](of_gtsrb(tmp_path, in_memory=in_memory, **chosen)) for in_memory in (False, True))
    assert isinstance(kept.train, AugmentedImages)
    assert torch.equal(kept.train.labels, read.train.labels)
    for ours, theirs in ((kept.plain, read.plain), (kept.test, read.test)):
        assert isinstance(ours, TensorImages)
        assert all(torch.allclose(ours[i][0], theirs[i][0], atol=1e-5) for i in range(0, len(ours), 7))
    broken = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "00005.ppm"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(MmpError, match=f"{broken}: not a readable image"):
        READERS["gtsrb"](of_gtsrb(tmp_path, in_memory=True, **chosen))


def test_a_damaged_table_of_test_labels_is_named(tmp_path: Path) -> None:
    write_gtsrb(tmp_path, tracks=1, frames=1)
    table = tmp_path / "gtsrb" / "GT-final_test.csv"
    table.write_bytes(table.read_bytes()[:-12])
    with pytest.raises(MmpError, match=r"GT-final_test\.csv .*damaged"):
        READERS["gtsrb"](of_gtsrb(tmp_path))


def test_a_split_that_is_too_small_says_which_and_how_large(tmp_path: Path) -> None:
    write_gtsrb(tmp_path, frames=1)
    with pytest.raises(
        MmpError, match=r"data\.validation=0\.1: makes a split of 17, but each of 43 classes.* at least 0\.253"
    ):
        ImageData(of_gtsrb(tmp_path, validation=0.1), seed=0)


def test_groups_are_never_split() -> None:
    labels = np.repeat(np.arange(4), 50)
    groups = np.repeat(np.arange(40), 5)
    cfg = DataConfig(name="x", validation=0.2, calibration=0.2, test=0.2)
    splits = split_indices(labels, cfg, 0, official_test=False, groups=groups)
    seen = [set(groups[indices].tolist()) for indices in splits.values()]
    assert sum(len(part) for part in seen) == 40
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(200))
    assert len(splits["test"]) == 40


# --- augmentation ---


def test_augmentation_changes_training_images_only(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    cfg = config("cifar10", tmp_path, augment={"scale": [0.3, 0.5], "hflip": 0.5, "color_jitter": None})
    source = READERS["cifar10"](cfg)
    assert isinstance(source.train, AugmentedImages)
    assert isinstance(source.plain, TensorImages)
    torch.manual_seed(0)
    seen = [source.train[0][0] for _ in range(4)]
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(source.plain[0][0], source.plain[0][0])
    without = READERS["cifar10"](config("cifar10", tmp_path))
    assert without.train is without.plain


def test_a_flip_is_the_mirror_image(tmp_path: Path) -> None:
    pixels = write_cifar10(tmp_path)["data_batch_1"]
    whole = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "hflip": 1.0, "color_jitter": None}
    source = READERS["cifar10"](config("cifar10", tmp_path, augment=whole, interpolation="bilinear"))
    expected = (pixels[0][:, :, ::-1] / 255 - 0.5) / 0.5
    assert np.allclose(source.train[0][0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"hflipp": 0.5}, r"data\.augment\.hflipp: .*'hflip'"),
        ({"auto_augment": "nope"}, r"data\.augment=.*nope.*timm does not accept it"),
    ],
)
def test_augmentations_that_timm_does_not_know_are_errors(
    augment: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(MmpError, match=message):
        transform_of(config("cifar10", tmp_path, augment=augment), training=True)


def test_digits_can_be_augmented() -> None:
    grey = {"classes": 10, "channels": 1, "mean": [0.5], "std": [0.5], "image_size": 16}
    cfg = DataConfig(name="digits", reader="digits", **grey, augment={"hflip": 0.0, "color_jitter": None})
    source = READERS["digits"](cfg)
    assert source.train[0][0].shape == source.plain[0][0].shape == (1, 16, 16)


def test_folders_are_read_in_grey_if_the_data_have_one_channel(tmp_path: Path) -> None:
    for label in ("a", "b"):
        folder = tmp_path / "train" / label
        folder.mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (40, 40), (255, 255, 255)).save(folder / f"{i}.png")
    cfg = config("imagefolder", tmp_path, channels=1, mean=[0.5], std=[0.5])
    image, _ = READERS["imagefolder"](cfg).plain[0]
    assert image.shape == (1, 32, 32)
    assert torch.allclose(image, torch.ones(1))
    (tmp_path / "test" / "a").mkdir(parents=True)
    (tmp_path / "test" / "c").mkdir()
    for label in ("a", "c"):
        Image.new("RGB", (40, 40)).save(tmp_path / "test" / label / "0.png")
    with pytest.raises(MmpError, match=r"test: its class folders differ from .*train \(b, c\)"):
        READERS["imagefolder"](cfg)


def test_a_failed_download_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    def offline(root: str, **_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(MmpError, match=r"data=cifar10: the download to .* failed \(no route to host\)"):
        READERS["cifar10"](config("cifar10", tmp_path / "new", download=True))


@pytest.mark.slow
def test_a_missing_test_image_and_a_label_beyond_the_classes_are_named(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    image = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "00001.ppm"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(MmpError, match=r"00001\.ppm: no such image"):
        ImageData(of_gtsrb(tmp_path), seed=0)
    image.write_bytes(content)
    table = tmp_path / "gtsrb" / "GT-final_test.csv"
    table.write_text(table.read_text().replace(";9;9;42", ";9;9;99"))
    with pytest.raises(MmpError, match=r"data\.classes=43, but a test image of gtsrb has label 99"):
        ImageData(of_gtsrb(tmp_path), seed=0)
