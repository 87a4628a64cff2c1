"""Image files become the pixels that a viewer shows, or are refused."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ImageOps
import pytest
from PIL import Image

from mmp.data.decoding import MODES, Decoding, look_at
from mmp.errors import MmpError
from tests.helpers.pictures import GREY16, REFUSED, SHOWN, flat, saved, turned


def decoded(content: bytes, channels: int = 3, background: str = "white") -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        result = Decoding(channels, background)(image)
    assert result.mode == MODES[channels]
    return np.asarray(result)


@pytest.mark.parametrize("name", SHOWN)
def test_a_file_gives_the_pixels_that_a_viewer_shows(name: str) -> None:
    content, expected = SHOWN[name]
    look_at(name, content)
    assert decoded(content).reshape(-1, 3)[: len(expected)].tolist() == expected


@pytest.mark.parametrize("name", SHOWN)
def test_grey_is_the_luma_of_the_colours(name: str) -> None:
    content, _ = SHOWN[name]
    colours = Image.fromarray(decoded(content))
    assert np.array_equal(decoded(content, channels=1), np.asarray(colours.convert("L")))


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_a_rule_is_refused_in_a_line_that_names_it(name: str) -> None:
    content, part = REFUSED[name]
    with pytest.raises(MmpError, match=part) as caught:
        look_at("some/image", content)
    assert re.fullmatch(r"some/image: .*; .*", str(caught.value))
    assert "0x" not in str(caught.value)  # no address of an object


def test_sixteen_bits_are_rounded_to_the_nearest_of_eight() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(levels / 257).astype(np.uint8)
    assert np.array_equal(decoded(saved(Image.fromarray(levels)), channels=1), expected)
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = saved(Image.fromarray(eight.astype(np.uint16) * 257), "TIFF")
    assert np.array_equal(decoded(deep, channels=1), eight)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :8], upright[:8, 8:] = 255, 120
    # Row and column of the stored picture at which the upright one starts, and whether its axes are exchanged.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright.T[::-1, ::-1], 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    result = decoded(turned(Image.fromarray(np.ascontiguousarray(stored)), orientation, kind), channels=1)
    assert result.shape == upright.shape
    assert np.abs(result.astype(int) - upright).max() <= 3  # JPEG


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_pictures_of_16_bits_are_turned_too(kind: str) -> None:
    assert decoded(turned(Image.fromarray(GREY16), 6, kind), channels=1).tolist() == [[0], [4], [128], [255]]


@pytest.mark.parametrize("channels", MODES)
def test_an_opaque_alpha_channel_changes_nothing(channels: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    opaque = np.dstack([colours, np.full((9, 7), 255, np.uint8)])
    with_alpha, without = (decoded(saved(Image.fromarray(each)), channels) for each in (opaque, colours))
    assert np.array_equal(with_alpha, without)


def test_the_background_is_a_setting() -> None:
    ink = np.zeros((2, 2, 4), np.uint8)
    ink[0, 0, 3] = 255
    content = saved(Image.fromarray(ink))
    assert decoded(content, channels=1).tolist() == [[0, 255], [255, 255]]
    assert decoded(content, background="#0a0a0a")[1, 1].tolist() == [10, 10, 10]
    with pytest.raises(MmpError, match=r"data\.background=colourless: no such colour"):
        Decoding(3, "colourless")


def test_transparency_can_be_a_channel() -> None:
    content = saved(Image.new("RGBA", (1, 1), (*(200, 30, 60), 128)))
    assert decoded(content, channels=4).tolist() == [[[200, 30, 60, 128]]]
    assert decoded(content, channels=2).tolist() == [[[84, 128]]]
    assert decoded(saved(flat("LAB"), "TIFF"), channels=4)[0, 0, 3] == 255
    with pytest.raises(MmpError, match=r"data\.channels=5: image files are read with 1"):
        Decoding(5)


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize("background", ["white", "#102030"])
def test_the_recipe_gives_the_same_pixels(tmp_path: Path, channels: int, background: str) -> None:
    decoding = Decoding(channels, background)
    opened, *steps = re.findall(r"`(.*?)`", decoding.recipe)
    files = {name: content for name, (content, _) in SHOWN.items()} | {
        "turned": turned(Image.fromarray(GREY16), 6, "TIFF")
    }
    for number, (name, content) in enumerate(files.items()):
        path = tmp_path / str(number)
        path.write_bytes(content)
        scope: dict[str, Any] = {"PIL": PIL, "numpy": np, "white": 4095 if name == "12-bit TIFF" else 65535}
        image = eval(opened, {**scope, "path": path})
        for step in steps:
            image = eval(step, {**scope, "image": image})
        assert image.mode == MODES[channels], name
        assert np.array_equal(np.asarray(image), decoded(content, channels, background)), name


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_seen_and_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), (level,) * 3) for level in (9, 200)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert look_at("a", content) == {"frames": True}
    assert look_at("a", saved(frames[0], kind)) == {}
    assert decoded(content, channels=1).tolist() == [[9] * 4] * 4


def test_damage_that_no_pixel_needs_is_not_refused() -> None:
    content = saved(flat("RGB"))
    comment = b"\0\0\0\3tEXta\0bxxxx"  # its checksum is wrong
    assert look_at("a", content[:-12] + comment + content[-12:]) == {}
    assert look_at("a", saved(flat("RGB"), "JPEG") + bytes(100_000)) == {}  # a video, in photos of telephones
    for kind in ("PNG", "JPEG", "WEBP"):
        bad_exif = saved(flat("RGB"), kind, exif=b"Exif\0\0garbage")
        assert look_at("a", bad_exif) == {}
        assert decoded(bad_exif).shape == (8, 8, 3)
