"""Batches that a GPU prepares itself, from a copy of the images in its memory; torch's meta device stands for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed
from PIL import Image

from mmp.config.schema import DataConfig, PruneConfig
from mmp.config.validate import validate
from mmp.data import module
from mmp.data.images import AugmentedImages
from mmp.data.module import ImageData
from mmp.models.networks import fill_input

META = torch.device("meta")
STRONG = {"scale": [0.5, 1.0], "hflip": 0.5, "vflip": 0.5, "color_jitter": [0.4, 0.4, 0.4], "re_prob": 0.5}


@pytest.fixture
def _meta_prepares_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PREPARING", ("meta",))


def digits(*settings: str) -> DataConfig:
    """Return the settings of scikit-learn's digits."""
    config = validate(composed("model=cnn", "data=digits", *settings), PruneConfig)
    fill_input(config)
    return config.data


def loaders(data: ImageData, device: torch.device) -> Iterator[Any]:
    yield data.train_dataloader(1, device)
    yield data.val_dataloader(device)


@pytest.mark.usefixtures("_meta_prepares_batches")
@pytest.mark.parametrize("augment", ["null", str(STRONG).replace("'", "")])
def test_all_steps_of_a_batch_are_taken_by_the_device(augment: str) -> None:
    data = ImageData(digits(f"+data.augment={augment}" if augment != "null" else "data.augment=null"), 0)
    for loader in loaders(data, META):
        images, labels = next(iter(loader))
        assert (images.device, labels.device) == (META, META)
        assert images.shape[1:] == (1, 16, 16)
        assert not loader.num_workers
        assert not loader.pin_memory
    images, _ = next(iter(data.train_dataloader()))
    assert images.device.type == "cpu"  # the images in the CPU's memory stay there


def test_a_copy_makes_the_same_batches() -> None:
    data = ImageData(digits(f"+data.augment={STRONG}".replace("'", "")), 0)
    split = data.train_dataloader().dataset
    assert isinstance(split.images, AugmentedImages)
    copied = split.to(torch.device("cpu"))
    assert len(copied.images) == len(split)  # images of other splits are not copied
    indices = [3, 700, 2000]
    for one, other in zip(split.__getitems__(indices), copied.__getitems__(indices), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("_meta_prepares_batches")
def test_splits_that_need_more_than_a_sixteenth_of_the_free_memory_stay_with_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = ImageData(digits("data.workers=2", "data.augment=null"), 0)
    for split, loader in (("train", data.train_dataloader), ("validation", data.val_dataloader)):
        needed = 16 * data.samples[split] * 16 * 16
        monkeypatch.setattr(module, "free_memory_of", lambda _, needed=needed: needed - 1)
        assert loader(device=META).num_workers == 2
        monkeypatch.setattr(module, "free_memory_of", lambda _, needed=needed: needed)
        assert loader(device=META).num_workers == 0


@pytest.mark.usefixtures("_meta_prepares_batches")
def test_files_and_distributed_trainings_are_read_by_workers(tmp_path: Path) -> None:
    for index in range(40):
        folder = tmp_path / f"{index % 2}"
        folder.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 5 * index).save(folder / f"{index}.png")
    files = ImageData(digits("data=imagefolder", f"data.root={tmp_path}", "data.classes=2", "data.workers=2"), 0)
    assert all(loader.num_workers == 2 for loader in loaders(files, META))
    assert ImageData(digits("data.workers=2"), 0).train_dataloader(2, META).num_workers == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_prepares_the_batches_of_the_cpu() -> None:
    data = ImageData(digits(f"+data.augment={STRONG}".replace("'", "")), 0)
    device = torch.device("cuda", 0)
    for (images, labels), (expected, classes) in zip(
        (next(iter(loader)) for loader in loaders(data, device)),
        (next(iter(loader)) for loader in loaders(data, torch.device("cpu"))),
        strict=True,
    ):
        assert images.device == device
        assert torch.equal(labels.cpu(), classes)
        # A level of 255 is rounded otherwise where sums of another order are halfway between two.
        assert ((images.cpu() - expected).abs() > 1e-4).float().mean() < 0.01
