"""Data: splits never overlap, the readers read the real file formats, and errors name the damaged file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from PIL import Image
from resources import needs
from small_files import write_fashion_mnist, write_idx

from mmp.config.schema import DataConfig
from mmp.data.images import TensorImages
from mmp.data.loader import EpochShuffle
from mmp.data.module import SPLITS, ImageData, split_indices
from mmp.data.readers import FASHION_MNIST_FOLDERS, read_idx
from mmp.errors import MmpError


def config(reader: str = "digits", **changes: Any) -> DataConfig:
    basis = {"classes": 10, "channels": 1, "image_size": 8, "mean": [0.5], "std": [0.25], "batch_size": 64}
    return DataConfig(name=reader, reader=reader, **{**basis, **changes})


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return ImageData(config(), seed=0)


def test_splits_are_disjoint_and_cover_everything(digits: ImageData) -> None:
    together = np.concatenate([digits.indices[name] for name in SPLITS])
    assert len(together) == len(set(together.tolist())) == 1797
    assert digits.samples == {name: len(digits.indices[name]) for name in SPLITS}


def test_splits_are_stratified(digits: ImageData) -> None:
    labels = np.arange(1000) % 10
    for indices in split_indices(labels, config(), 0, official_test=False).values():
        counts = np.bincount(labels[indices], minlength=10)
        assert counts.max() - counts.min() <= 1


def test_the_test_split_is_the_same_for_every_seed_and_the_others_are_not(digits: ImageData) -> None:
    other, again = ImageData(config(), seed=1), ImageData(config(), seed=0)
    assert np.array_equal(digits.indices["test"], other.indices["test"])
    for name in ("train", "validation", "calibration"):
        assert not np.array_equal(digits.indices[name], other.indices[name])
        assert np.array_equal(digits.indices[name], again.indices[name])


@pytest.mark.slow
def test_processes_load_images_also_inside_a_worker_of_joblib() -> None:
    """The launcher ``joblib`` runs jobs in such workers, which have a start method of their own."""

    def labels(workers: int) -> list[int]:
        data = ImageData(config(workers=workers), seed=0)
        return [label for _, batch in data.val_dataloader() for label in batch.tolist()]

    found = Parallel(n_jobs=2, backend="loky")(delayed(labels)(1) for _ in range(2))
    assert found == [labels(0)] * 2


def test_too_few_images_of_a_class_to_split_is_an_error() -> None:
    with pytest.raises(MmpError, match="class 1 has 1 images, but 4 splits"):
        split_indices(np.array([0] * 50 + [1]), config(), 0, official_test=False)


def test_digits_keep_their_pixels(digits: ImageData) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = next(iter(digits.test_dataloader()))
    first = digits.indices["test"][0]
    expected = (np.round(bunch.images[first] * 255 / 16) / 255 - 0.5) / 0.25
    assert images.shape == (360, 1, 8, 8)
    assert images.dtype == torch.float32
    assert np.allclose(images[0, 0].numpy(), expected, atol=1e-5)
    assert labels[0] == bunch.target[first]


def test_digits_are_resized() -> None:
    images, _ = next(iter(ImageData(config(image_size=16), seed=0).val_dataloader()))
    assert images.shape[1:] == (1, 16, 16)


def test_training_batches_are_whole_and_change_with_the_epoch(digits: ImageData) -> None:
    loader = digits.train_dataloader()
    assert {len(labels) for _, labels in loader} == {64}
    loader.sampler.set_epoch(0)  # type: ignore[attr-defined]
    first = torch.cat([labels for _, labels in loader])
    assert torch.equal(first, torch.cat([labels for _, labels in loader]))
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert not torch.equal(first, torch.cat([labels for _, labels in loader]))


def test_evaluation_reads_every_image_once_and_in_order(digits: ImageData) -> None:
    labels = torch.cat([y for _, y in digits.calibration_dataloader()])
    assert len(labels) == digits.samples["calibration"]


def test_epoch_shuffle_is_a_permutation_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochShuffle(50, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert sorted(order(0, 0)) == list(range(50))
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_a_batch_equals_its_single_images_and_the_fingerprint_depends_on_every_pixel() -> None:
    pixels = torch.randint(0, 256, (5, 2, 3, 3), dtype=torch.uint8)
    images = TensorImages(pixels, torch.arange(5), [0.1, 0.2], [0.5, 0.6])
    batch, labels = images.__getitems__([3, 1])
    assert torch.equal(batch, torch.stack([images[3][0], images[1][0]]))
    assert labels.tolist() == [3, 1]
    before = images.fingerprint()
    images.images[4, 1, 2, 2] += 1
    assert images.fingerprint() != before


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_either_layout(suffix: str, below: str, tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / below, suffix)
    data = ImageData(config("fashion_mnist", root=str(tmp_path), image_size=28), seed=0)
    assert data.samples["test"] == 20
    assert sum(data.samples.values()) == 120
    images, labels = next(iter(data.test_dataloader()))
    assert labels.tolist() == [i % 10 for i in range(20)]
    assert images[0, 0, 0, 5].item() == pytest.approx((5 / 255 - 0.5) / 0.25, abs=1e-5)


@pytest.mark.parametrize("cut", [3, 10, 500])
def test_a_truncated_file_is_named(cut: int, tmp_path: Path) -> None:
    path = write_fashion_mnist(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(MmpError, match="train-images-idx3-ubyte"):
        read_idx(path, dimensions=3)


def test_other_damage_is_named_too(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    with pytest.raises(MmpError, match="not an IDX file"):
        read_idx(tmp_path / "train-images-idx3-ubyte", dimensions=1)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(99) % 10)
    with pytest.raises(MmpError, match="100 train images but 99 labels"):
        ImageData(config("fashion_mnist", root=str(tmp_path)), seed=0)
    with pytest.raises(MmpError, match=r"nowhere.*apt-get install"):
        ImageData(config("fashion_mnist", root=str(tmp_path / "nowhere")), seed=0)


def test_a_label_beyond_the_classes_and_an_unknown_reader_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MmpError, match=r"data\.classes=9.*label 9"):
        ImageData(config(classes=9), seed=0)
    with pytest.raises(MmpError, match="'digits'"):
        ImageData(config("digit"), seed=0)


@needs("data")
def test_the_real_fashion_mnist_is_whole() -> None:
    train = read_idx(FASHION_MNIST_FOLDERS[0] / "train-labels-idx1-ubyte", dimensions=1)
    test = read_idx(FASHION_MNIST_FOLDERS[0] / "t10k-labels-idx1-ubyte", dimensions=1)
    assert np.bincount(train).tolist() == [6000] * 10
    assert np.bincount(test).tolist() == [1000] * 10


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for part, count in (("train", 20), ("test", 3)):
        for label, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 30), colour).save(folder / f"{i}.png")
    return tmp_path


def of_folders(root: Path, **changes: Any) -> DataConfig:
    rgb = {"classes": 2, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 32}
    return config("imagefolder", root=str(root), **{**rgb, **changes})


def test_folders_of_images_are_read(folders: Path) -> None:
    data = ImageData(of_folders(folders), seed=0)
    assert data.samples == {"train": 32, "validation": 4, "calibration": 4, "test": 6}
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (6, 3, 32, 32)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images[0, :, 16, 16].tolist() == pytest.approx([-1, -1, 1], abs=1e-5)


def test_wrong_folders_and_files_that_are_no_images_are_named(folders: Path) -> None:
    with pytest.raises(MmpError, match=r"data\.classes=3.*2 class folders"):
        ImageData(of_folders(folders, classes=3), seed=0)
    with pytest.raises(MmpError, match="no such folder"):
        ImageData(of_folders(folders / "nowhere"), seed=0)
    (folders / "test" / "red" / "1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(MmpError, match=r"test.red.1\.png: not a readable image"):
        next(iter(ImageData(of_folders(folders), seed=0).test_dataloader()))
