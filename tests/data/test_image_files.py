"""Data sets of image files: checked as a whole before the training, and identified by their contents."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ImageOps
import pytest
import timm
import torch
from PIL import Image

from mmp.config.schema import DataConfig
from mmp.data import digests
from mmp.data.decoding import Decoding
from mmp.data.image_files import FileImages
from mmp.data.images import TensorImages, in_memory
from mmp.data.module import ImageData
from mmp.errors import MmpError
from tests.data.test_data import of_folders
from tests.helpers.pictures import REFUSED, saved, tiff, turned


def write(root: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        path = root / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of 40 grey pictures in two classes."""
    folder = tmp_path / "root"
    write(folder, {f"{i % 2}/{i:02d}.png": saved(Image.fromarray(noise((8, 8), i))) for i in range(40)})
    return folder


def of(root: Path, channels: int = 1, **changes: Any) -> DataConfig:
    statistics = {"mean": [0.5] * channels, "std": [0.5] * channels}
    return of_folders(root, **{"channels": channels, "image_size": 8, "augment": None, **statistics, **changes})


def test_sixteen_bits_are_the_same_data_as_eight(root: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            levels = np.asarray(image, np.uint16) * 257
        write(deep, {f"{path.parent.name}/{path.stem}.png": saved(Image.fromarray(levels))})
    eight, sixteen = (next(iter(ImageData(of(each), 0).test_dataloader()))[0] for each in (root, deep))
    assert torch.equal(eight, sixteen)


def test_turned_tiffs_are_read_upright(tmp_path: Path) -> None:
    for i in range(40):
        upright = noise((8, 12), i)
        files = {
            "straight": saved(Image.fromarray(upright), "TIFF"),
            "turned": turned(Image.fromarray(np.rot90(upright).copy()), 6, "TIFF"),
        }
        for kind, content in files.items():
            write(tmp_path / kind, {f"{i % 2}/{i:02d}.tif": content})
    straight, upright_ones = (
        next(iter(ImageData(of(tmp_path / kind), 0).test_dataloader()))[0] for kind in ("straight", "turned")
    )
    assert torch.equal(straight, upright_ones)


def test_names_that_are_not_utf8_can_be_printed(root: Path) -> None:
    path = os.path.join(os.fsencode(root), b"train", b"0", b"caf\xe9.png")  # noqa: PTH118 - bytes
    Path(os.fsdecode(path)).write_bytes(saved(Image.fromarray(noise((8, 8), 50))))
    assert ImageData(of(root), 0).fingerprint
    Path(os.fsdecode(path)).write_bytes(b"damaged")
    with pytest.raises(MmpError) as caught:
        ImageData(of(root), 0)
    assert r"caf\xe9.png: not a readable image" in str(caught.value).encode("utf-8").decode()


def test_labels_are_part_of_the_fingerprint(root: Path) -> None:
    paths = sorted(map(str, root.rglob("*.png")))
    first, second = (FileImages([(path, k) for path in paths], root, Decoding(1), torch.as_tensor) for k in (0, 1))
    assert first.fingerprint() != second.fingerprint()


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "floating point", "four bands", "part of a BMP", "part of a JPEG with a preview",
        "16 bits with a transparent level",
    ],
)  # fmt: skip
def test_every_file_is_checked_before_the_training(root: Path, name: str, in_memory: bool) -> None:
    content, part = REFUSED[name]
    for number in range(40):  # one file at a time, thus in each of the splits
        write(root, {f"{number % 2}/{number:02d}.png": content})
        if number % 13 == 0:
            with pytest.raises(MmpError, match=rf"{number:02d}\.png: .*{part}"):
                ImageData(of(root, in_memory=in_memory), 0)
        write(root, {f"{number % 2}/{number:02d}.png": saved(Image.fromarray(noise((8, 8), number)))})


def ink(colour: tuple[int, int, int], seed: int) -> bytes:
    """Return a picture of one colour that is only in the alpha channel."""
    picture = Image.new("RGB", (8, 8), colour)
    picture.putalpha(Image.fromarray(noise((8, 8), seed)))
    return saved(picture)


@pytest.mark.slow
def test_a_picture_in_the_alpha_channel_stays_visible_or_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {f"{i % 2}/{i}.png": ink((0, 0, 0), i) for i in range(40)})
    images = next(iter(ImageData(of(tmp_path), 0).test_dataloader()))[0]
    assert images.std(dim=(1, 2, 3)).min() > 0.3
    with pytest.raises(MmpError, match=r"0\.png: its visible pixels.*data\.background=black.*set data\.background"):
        ImageData(of(tmp_path, background="black"), 0)
    write(tmp_path, {f"{i % 2}/{i}.png": ink((254, 250, 255), i) for i in range(40)})
    for kept in (False, True):
        with pytest.raises(MmpError, match=r"data\.background=white"):
            ImageData(of(tmp_path, in_memory=kept), 0)
    for changes in ({"background": "black"}, {"background": "grey"}, {"channels": 2}, {"channels": 4}):
        images = next(iter(ImageData(of(tmp_path, **changes), 0).test_dataloader()))[0]
        assert images.std() > 0.1


def test_ink_of_the_same_luma_as_the_background_is_refused_in_grey_only(tmp_path: Path) -> None:
    write(tmp_path, {f"{i % 2}/{i}.png": ink((255, 0, 0), i) for i in range(40)})
    with pytest.raises(MmpError, match="the picture disappears"):
        ImageData(of(tmp_path, background="#4c4c4c"), 0)
    ImageData(of(tmp_path, channels=3, background="#4c4c4c"), 0)


def test_frames_and_composition_are_said_once_with_a_count(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    frames = [Image.fromarray(noise((8, 8), i)) for i in range(2)]
    for name in ("0/a.tif", "1/b.tif"):
        write(root, {name: saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])})
    write(root, {"1/c.png": ink((0, 0, 0), 1)})
    ImageData(of(root), 0)
    several = [r for r in caplog.records if "several frames" in r.message]
    assert [r.levelname for r in several] == ["WARNING"]
    assert re.search(r"2 of 43 images .*0.a\.tif: only the first is read", several[0].message)
    assert caplog.text.count("1 of 43 images have transparency: composed over data.background=white") == 1


def test_twelve_bits_in_files_of_sixteen_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    levels = [noise((8, 8), i).astype(np.uint16) * 16 for i in range(40)]
    write(tmp_path, {f"{i % 2}/{i}.png": saved(Image.fromarray(each)) for i, each in enumerate(levels)})
    ImageData(of(tmp_path), 0)
    assert re.search(r"40 of 40 images .* no pixel is above 6\.2 % of white", caplog.text)
    caplog.clear()
    write(tmp_path, {"0/0.png": saved(Image.fromarray(levels[0] * 16))})
    ImageData(of(tmp_path), 0)
    assert "of white" not in caplog.text


@pytest.mark.parametrize("bands", [3, 4])
def test_colours_of_twelve_bits_in_files_of_sixteen_are_a_warning(
    bands: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = [0] * (bands - 3)  # such as infrared
    for i in range(40):
        levels = noise((4, bands), i).astype("<u2") * 16
        write(tmp_path, {f"{i % 2}/{i}.tif": tiff(levels.tobytes(), 2, 16, bands, extra)})
    ImageData(of(tmp_path, channels=3), 0)
    assert re.search(r"40 of 40 images .* no pixel is above \d\.\d % of white", caplog.text)
    caplog.clear()
    write(tmp_path, {"0/0.tif": tiff((noise((4, bands)).astype("<u2") * 256).tobytes(), 2, 16, bands, extra)})
    ImageData(of(tmp_path, channels=3), 0)
    assert "of white" not in caplog.text


def test_alpha_is_a_channel_only_of_data_that_have_it(root: Path) -> None:
    with pytest.raises(MmpError, match=r"data\.channels=4: no image .* has transparency.*set data\.channels=3"):
        ImageData(of(root, channels=4), 0)
    with pytest.raises(MmpError, match=r"data\.channels=2: .*set data\.channels=1"):
        ImageData(of(root, channels=2), 0)
    write(root, {"0/alpha.png": ink((9, 9, 9), 0)})
    images = next(iter(ImageData(of(root, channels=4), 0).train_dataloader()))[0]
    assert images.shape[1:] == (4, 8, 8)
    assert (images[:, 3] == 1).flatten(1).all(dim=1).sum() >= len(images) - 1  # the others are opaque
    write(root, {"0/infrared.tif": tiff(bytes([1, 2, 3, 4] * 4), 2, samples=4, extra=[0])})
    with pytest.raises(MmpError, match=r"infrared\.tif: has a further channel.*data\.channels=3"):
        ImageData(of(root, channels=4), 0)
    ImageData(of(root, channels=3), 0)
    with pytest.raises(MmpError, match=r"data\.channels=6: image files are read with"):
        ImageData(of(root, channels=6), 0)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("augment", [{"color_jitter": None}, {"color_jitter": None, "re_prob": 0.5, "vflip": 0.5}])
def test_images_with_alpha_are_augmented(tmp_path: Path, in_memory: bool, augment: dict[str, Any]) -> None:
    write(tmp_path, {f"{i % 2}/{i}.png": saved(Image.fromarray(noise((10, 8, 4), i))) for i in range(40)})
    data = ImageData(of(tmp_path, channels=4, augment=augment, in_memory=in_memory), 0)
    assert next(iter(data.train_dataloader()))[0].shape[1:] == (4, 8, 8)


@pytest.mark.parametrize(
    "augment", [{"auto_augment": "rand-m9"}, {"grayscale_prob": 0.1}, {"color_jitter": [0.4, 0.4, 0.4, 0.1]}]
)
def test_augmentations_that_need_colours_are_refused_for_other_channels(
    tmp_path: Path, augment: dict[str, Any]
) -> None:
    write(tmp_path, {f"{i % 2}/{i}.png": saved(Image.fromarray(noise((8, 8, 4), i))) for i in range(40)})
    (key,) = augment
    with pytest.raises(MmpError, match=rf"data\.augment\.{key}=.*data\.channels=4"):
        ImageData(of(tmp_path, channels=4, augment=augment), 0)


@pytest.mark.parametrize("channels", [2, 4, 5, 12])
def test_any_number_of_channels_works_in_memory(channels: int) -> None:
    pixels, labels = torch.from_numpy(noise((6, channels, 10, 12))), torch.arange(6)
    cfg = of(Path(), channels=channels, augment={"color_jitter": None})
    train, plain = in_memory(pixels, labels, cfg, resize_now=False)
    assert isinstance(plain, TensorImages)
    assert plain[0][0].shape == train[0][0].shape == (channels, 8, 8)
    for augment in ({}, {"color_jitter": 0.1}, {"color_jitter": None, "gaussian_blur_prob": 0.5}):
        with pytest.raises(MmpError, match=rf"data\.channels={channels} are augmented only by"):
            in_memory(pixels, labels, of(Path(), channels=channels, augment=augment))
    with pytest.raises(MmpError, match="augmented only by"):
        in_memory(pixels, labels, of(Path(), channels=channels, augment={"color_jitter": None}, augment_batches=False))


def test_images_that_do_not_fit_into_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {f"{i % 2}/{i}.png": saved(Image.fromarray(noise((8, 8, 3), i))) for i in range(40)})
    monkeypatch.setenv("MMP_MEMORY", str(40 * 3 * 8 * 8 - 1))
    with pytest.raises(MmpError, match=r"^data\.in_memory=true: 40 images of 8 pixels need .*; set .*=false$"):
        ImageData(of(tmp_path, channels=3, in_memory=True), 0)
    ImageData(of(tmp_path, channels=3), 0)
    pixels, labels = torch.from_numpy(noise((6, 3, 10, 10))), torch.arange(6)
    with pytest.raises(MmpError, match=r"^data\.image_size=99: 6 images of 99 pixels need .*_size=10$"):
        in_memory(pixels, labels, of(Path(), channels=3, image_size=99))


def test_images_are_resized_in_parts_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = torch.from_numpy(noise((7, 3, 10, 12))), torch.arange(7)
    whole = in_memory(pixels, labels, of(Path(), channels=3))[1]
    monkeypatch.setattr("mmp.data.images._RESIZED_AT_ONCE", 2)
    parts = in_memory(pixels, labels, of(Path(), channels=3))[1]
    assert whole.fingerprint() == parts.fingerprint()
    assert all(torch.equal(whole[index][0], parts[index][0]) for index in range(7))


@pytest.mark.slow
@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_images_replaced_in_place_are_other_data(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool, kept: bool
) -> None:
    monkeypatch.setattr(digests, "TOO_RECENT", -(10**10))
    write(root, {f"{i % 2}/{i:02d}.bmp": saved(Image.fromarray(noise((8, 8), i)), "BMP") for i in range(40)})

    def fingerprint(folder: Path = root) -> str:
        return ImageData(of(folder, in_memory=kept), 0, tmp_path / "cache" if memory else None).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    copy = shutil.copytree(root, tmp_path / "elsewhere")
    assert fingerprint(copy) == before
    path = root / "train" / "0" / "00.bmp"
    size = path.stat().st_size
    path.write_bytes(saved(Image.fromarray(noise((8, 8), 99)), "BMP"))
    assert path.stat().st_size == size
    after = fingerprint()
    assert after not in (before, fingerprint(copy))
    path.rename(root / "train" / "1" / "00.bmp")
    assert fingerprint() not in (before, after)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_renamed_class_is_other_data(root: Path, in_memory: bool) -> None:
    before = ImageData(of(root, in_memory=in_memory), 0)
    (root / "train" / "1").rename(root / "train" / "one")
    after = ImageData(of(root, in_memory=in_memory), 0)
    assert (before.class_names, after.class_names) == (("0", "1"), ("0", "one"))
    assert before.fingerprint != after.fingerprint


def test_a_digest_per_image_shows_copies(root: Path) -> None:
    shutil.copy(root / "train/0/00.png", root / "train/1/copy.png")
    paths = sorted(map(str, root.rglob("*.png")))
    digests_of_all = FileImages([(path, 0) for path in paths], root, Decoding(1), torch.as_tensor).digests
    assert len(digests_of_all) == 41
    assert len(set(digests_of_all)) == 40


@pytest.mark.parametrize("kept", [False, True])
def test_the_recipe_of_the_data_gives_their_tensors(tmp_path: Path, kept: bool) -> None:
    for i in range(40):
        levels = np.random.default_rng(i).integers(0, 65536, (12, 9), dtype=np.uint16)
        write(tmp_path, {f"{i % 2}/{i:02d}.png": saved(Image.fromarray(levels))})
    data = ImageData(of(tmp_path, background="#102030", in_memory=kept, mean=[0.3], std=[0.4]), 0)
    *steps, create = re.findall(r"`(.*?)`", data.recipe)
    scope: dict[str, Any] = {"PIL": PIL, "numpy": np, "timm": timm, "white": 65535}
    paths = sorted((tmp_path / "train").rglob("*.png"))
    scope["path"] = paths[data.indices["validation"][0]]
    for step in steps:
        scope["image"] = eval(step, scope)
    expected = eval(create, scope)(scope["image"])
    torch.testing.assert_close(next(iter(data.val_dataloader()))[0][0], expected)
    assert "'#102030'" in data.recipe
