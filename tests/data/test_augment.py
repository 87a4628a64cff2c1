"""Augmentation in batches: timm's pixels for the same random numbers, which depend only on seed, epoch and image."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from composing import composed
from PIL import Image
from scipy.stats import chisquare, ks_2samp, kstest
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import ColorJitter

from mmp.config.identity import identity, protocol_of, settings_of
from mmp.config.schema import DataConfig
from mmp.config.validate import validate
from mmp.data import augment
from mmp.data.augment import DRAWS, augmentation_of, crops
from mmp.data.images import AugmentedImages, TransformedImages, in_memory, transform_of
from mmp.data.loader import EpochLoader, EpochShuffle, Split
from mmp.data.module import ImageData

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def config(augment: Any, channels: int = 3, **changes: Any) -> DataConfig:
    state = {"image_size": 32, "mean": MEAN[:channels], "std": STD[:channels], "classes": 10, **changes}
    return DataConfig(name="x", reader="digits", channels=channels, augment=augment, **state)


def photos(count: int, channels: int = 3, size: int = 32) -> Tensor:
    """Return smooth images with noise: they have edges, flat areas, and values up to both ends of [0, 255]."""
    noise = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))
    coarse = torch.nn.functional.interpolate(noise[..., :4, :4], (size, size), mode="bicubic")
    return ((1.6 * coarse + 0.3 * noise - 0.4) * 255).clamp(0, 255).to(torch.uint8)


def images_of(cfg: DataConfig, count: int = 20, size: int = 32) -> Any:
    return in_memory(photos(count, cfg.channels, size), torch.arange(count) % 10, cfg)[0]


def by_timm(cfg: DataConfig, pixels: Tensor, row: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Return one image, augmented by timm with the random numbers of a row."""
    numbers = row.double()
    crop, erasing = numbers[augment._CROP], numbers[augment._ERASING]
    tried, placed, tossed = iter(crop[:-2].tolist()), iter(crop[-2:].tolist()), iter(numbers[augment._FLIPS].tolist())

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * next(tried)

    def randint(low: int, high: int) -> int:
        return low + int(next(placed) * (high - low + 1))

    def chance() -> float:  # random erasing calls this first; the crop is finished
        nonlocal tried, placed
        tried, placed = iter(erasing[:-2].tolist()), iter(erasing[-2:].tolist())
        return float(numbers[augment._ERASED])

    def jitter(*ranges: tuple[float, float] | None) -> tuple[Any, ...]:
        order = augment._ORDERS[int(numbers[augment._ORDER] * 6)]
        drawn = zip(ranges[:3], numbers[augment._FACTORS].tolist(), strict=True)
        factors = [None if r is None else float(np.float32(r[0] + (r[1] - r[0]) * u)) for r, u in drawn]
        return (torch.tensor([*order, 3]), *factors, None)

    image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())
    with monkeypatch.context() as patch:
        patch.setattr(random, "uniform", uniform)
        patch.setattr(random, "randint", randint)
        patch.setattr(random, "random", chance)
        patch.setattr(torch, "rand", lambda _: torch.tensor([next(tossed)], dtype=torch.float64))
        patch.setattr(ColorJitter, "get_params", staticmethod(jitter))
        return transform_of(cfg, training=True)(image)


CIFAR = {"scale": [0.6, 1.0], "ratio": [1.0, 1.0], "hflip": 0.5, "color_jitter": None}


@pytest.mark.parametrize(
    ("chosen", "changes", "size"),
    [
        ({}, {}, 32),
        (CIFAR, {}, 32),
        ({}, {"interpolation": "bicubic"}, 32),
        ({"vflip": 0.5, "hflip": 1.0, "re_prob": 0.7, "color_jitter": None}, {}, 32),
        ({"color_jitter": [0.2, 0.0, 0.9], "re_prob": 0.5}, {}, 32),
        ({"ratio": [3.0, 4.0], "scale": [0.9, 1.0], "color_jitter": None}, {}, 32),  # no box fits
        ({"vflip": 0.5, "color_jitter": 0.8}, {"channels": 1}, 32),
        (CIFAR, {"image_size": 48}, 32),
        ({"hflip": 0.0}, {"channels": 1, "image_size": 16}, 8),
        ({"color_jitter": None}, {"image_size": 24}, 32),
        ({"color_jitter": None}, {"image_size": 40, "interpolation": "bicubic"}, 32),
    ],
    ids=str,
)
def test_the_same_random_numbers_make_the_same_pixels_as_timm(
    chosen: dict[str, Any], changes: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, count = config(chosen, **changes), 60
    pixels = photos(count, cfg.channels, size)
    rows = torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(1))
    batched = augmentation_of(transform_of(cfg, training=True))
    assert batched is not None
    expected = torch.stack([by_timm(cfg, *pair, monkeypatch) for pair in zip(pixels, rows, strict=True)])
    levels = 255 * torch.tensor(cfg.std).view(-1, 1, 1)
    apart = (batched(pixels, rows) - expected).abs() * levels
    # Halves are rounded up or down by the last bit of a float; if a crop loses pixels, PIL may resize columns first.
    assert apart.max() < 2.5
    assert (apart > 0.01).float().mean() < (0.01 if cfg.image_size == size else 0.1)
    assert len({tuple(image.flatten().tolist()) for image in expected}) == count


def test_boxes_are_timms_on_images_that_are_not_square(monkeypatch: pytest.MonkeyPatch) -> None:
    for height, width, scale, ratio in ((20, 28, (0.08, 1.0), (0.75, 4 / 3)), (28, 20, (0.7, 1.0), (0.4, 0.9))):
        cropping = RandomResizedCropAndInterpolation(32, scale, ratio)
        rows = torch.rand(300, 22, generator=torch.Generator().manual_seed(2)).double()
        rows[:100, :20:2] = 0.99  # so that some need several attempts, or find no box
        expected = []
        for row in rows.tolist():
            tried, placed = iter(row[:20]), iter(row[20:])
            monkeypatch.setattr(random, "uniform", lambda a, b, t=tried: a + (b - a) * next(t))
            monkeypatch.setattr(random, "randint", lambda a, b, p=placed: a + int(next(p) * (b - a + 1)))
            expected.append(cropping.get_params(Image.new("L", (width, height)), scale, ratio))
        assert crops(rows, (height, width), scale, ratio).tolist() == [list(box) for box in expected]


@pytest.mark.slow
def test_parameters_are_distributed_as_timms() -> None:
    split = Split(images_of(config({}), 4000), range(4000), seed=3)
    rows = split._uniforms(torch.arange(4000), 3).double()
    assert min(kstest(column, "uniform").pvalue for column in rows.T.numpy()) > 1e-3
    random.seed(0)
    timms = torch.tensor(
        [
            RandomResizedCropAndInterpolation.get_params(Image.new("L", (32, 32)), (0.08, 1.0), (0.75, 4 / 3))
            for _ in range(4000)
        ]
    )
    ours = crops(rows[:, augment._CROP], (32, 32), (0.08, 1.0), (0.75, 4 / 3))
    for statistic in (lambda box: box[:, 0], lambda box: box[:, 1], lambda box: box[:, 2] * box[:, 3]):
        assert ks_2samp(statistic(ours).numpy(), statistic(timms).numpy()).pvalue > 0.01
    assert ks_2samp((ours[:, 3] / ours[:, 2]).numpy(), (timms[:, 3] / timms[:, 2]).numpy()).pvalue > 0.01
    orders = (rows[:, augment._ORDER] * 6).long().bincount(minlength=6)
    assert chisquare(orders.numpy()).pvalue > 0.01
    flipped = (rows[:, augment._FLIPS] < 0.5).sum(0).tolist()
    assert all(abs(count - 2000) < 4 * 4000**0.5 / 2 for count in flipped)
    nearby = torch.corrcoef(torch.stack([rows[:-1, 0], rows[1:, 0], rows[:-1, 1]]))
    assert (nearby - torch.eye(3)).abs().max() < 0.06


@pytest.mark.parametrize(
    ("chosen", "changes"),
    [
        ({"train_crop_mode": "rkrc"}, {}),
        ({"auto_augment": "rand-m9-mstd0.5"}, {}),
        ({"grayscale_prob": 0.1}, {}),
        ({"gaussian_blur_prob": 0.1}, {}),
        ({"color_jitter": [0.1, 0.1, 0.1, 0.1]}, {}),
        ({"color_jitter_prob": 0.5}, {}),
        ({"re_prob": 0.5, "re_mode": "pixel"}, {}),
        ({"re_prob": 0.5, "re_count": 2}, {}),
        ({}, {"interpolation": "lanczos"}),
        ({}, {"interpolation": "random"}),
        ({}, {"augment_batches": False}),
    ],
    ids=str,
)
def test_augmentations_without_a_batch_version_go_one_by_one(chosen: dict[str, Any], changes: dict[str, Any]) -> None:
    images = images_of(config(chosen, **changes))
    assert isinstance(images, TransformedImages)
    assert images[0][0].shape == (3, 32, 32)


def batch(split: Split, *indices: int) -> Tensor:
    return split.__getitems__(list(indices))[0]


def test_augmentation_depends_only_on_seed_epoch_and_image() -> None:
    images = images_of(config({"re_prob": 0.5}))
    chosen = [3, 5, 8, 13, 2]

    def split(seed: int = 0) -> Split:
        return Split(images, chosen, seed)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = batch(split(), *range(10))  # two epochs
    assert whole.shape == (10, 3, 32, 32)
    assert torch.equal(whole[[7, 4, 0]], batch(split(), 7, 4, 0))
    for index in range(10):
        assert torch.equal(whole[index : index + 1], batch(split(), index))
        image, label = split()[index]
        assert torch.equal(image, whole[index])
        assert label == images.labels[chosen[index % 5]]
    assert not any(torch.equal(whole[i], whole[i + 5]) for i in range(5))
    assert not any(torch.equal(a, b) for a, b in zip(whole, batch(split(1), *range(10)), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_workers_make_the_same_batches() -> None:
    def epochs(workers: int) -> list[Tensor]:
        order = EpochShuffle(20, seed=0)
        loader = EpochLoader(Split(images_of(config({})), range(20), 0), 6, order, num_workers=workers)
        batches = []
        for epoch in range(2):
            order.set_epoch(epoch)
            batches += [images for images, _ in loader]
        return batches

    assert all(torch.equal(a, b) for a, b in zip(epochs(0), epochs(2), strict=True))


def test_every_step_stays_on_the_device_of_the_images() -> None:
    batched = augmentation_of(transform_of(config({"re_prob": 0.5, "vflip": 0.5}), training=True))
    assert batched is not None
    for uniforms in (torch.rand(4, DRAWS), torch.rand(4, DRAWS, device="meta")):
        result = batched(torch.empty(4, 3, 32, 32, dtype=torch.uint8, device="meta"), uniforms)
        assert (result.shape, result.dtype, result.device.type) == ((4, 3, 32, 32), torch.float32, "meta")


def test_runs_augmented_in_batches_and_one_by_one_have_different_identities() -> None:
    def settings(*overrides: str) -> dict[str, Any]:
        return identity(settings_of(validate(composed(*overrides))))

    plain, batched = settings(), settings("+data.augment={hflip: 0.5}")
    one_by_one = settings("+data.augment={hflip: 0.5}", "data.augment_batches=false")
    assert settings("data.augment_batches=false") == plain
    # These keys are absent while they have no effect, so the hashes of older results stay valid.
    assert not {"augment_batches", "in_memory", "background"} & {**plain["data"], **one_by_one["data"]}.keys()
    assert settings("data.in_memory=true")["data"] == {**plain["data"], "in_memory": True}
    assert settings("data.background=black")["data"] == {**plain["data"], "background": "black"}
    assert batched["data"] == {**one_by_one["data"], "augment_batches": True}
    assert protocol_of(batched) != protocol_of(one_by_one)  # never compared with each other


def test_timms_default_augmentations_are_reproducible() -> None:
    state = {"mean": [0.5], "std": [0.25], "classes": 10, "image_size": 8}
    for batches in (True, False):
        cfg = DataConfig(name="x", reader="digits", channels=1, augment={}, augment_batches=batches, **state)
        first, again = (next(iter(ImageData(cfg, seed=0).train_dataloader()))[0] for _ in range(2))
        assert torch.equal(first, again)
    assert isinstance(images_of(config({})), AugmentedImages)
