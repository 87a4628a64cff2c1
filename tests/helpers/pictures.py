"""Small image files of the kinds that cameras, scanners and microscopes write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

GREY16 = np.array([[0, 1000, 32768, 65535]], np.uint16)
RED = (200, 30, 60)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(bits: int, colour: int, size: tuple[int, int], rows: Sequence[bytes], transparent: bytes = b"") -> bytes:
    """Return a PNG of a depth and a colour type that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0))
    middle = chunk(b"tRNS", transparent) if transparent else b""
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + middle + data + chunk(b"IEND", b"")


def tiff(
    data: bytes,
    photometric: int = 1,
    bits: int = 8,
    samples: int = 1,
    extra: Sequence[int] = (),
    sample_format: int = 1,
    order: str = "<",
    size: tuple[int, int] = (4, 1),
) -> bytes:
    """Return an uncompressed TIFF of a kind that Pillow does not write."""
    width, height = size
    tags: dict[int, Sequence[int]] = {
        256: [width], 257: [height], 258: [bits] * samples, 259: [1], 262: [photometric], 273: [0], 277: [samples],
        278: [height], 279: [len(data)], 338: extra, 339: [sample_format] * samples,
    }  # fmt: skip
    tags = {tag: values for tag, values in tags.items() if values}
    end = 8 + 2 + 12 * len(tags) + 4
    tags[273] = [end + sum(2 * len(values) for values in tags.values() if len(values) > 2)]
    entries, arrays = b"", b""
    for tag, values in tags.items():
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            cell, arrays = struct.pack(f"{order}I", end + len(arrays)), arrays + packed
        else:
            cell = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + cell
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    return head + entries + bytes(4) + arrays + data


def turned(image: Image.Image, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


def palette() -> Image.Image:
    """Return a picture of two pixels, red and green."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    return image


def flat(mode: str, colour: Any = RED) -> Image.Image:
    """Return a picture of one colour, converted to a mode."""
    return Image.new("RGB", (8, 8), colour).convert(mode)


def _grey(*levels: int) -> list[list[int]]:
    return [[level] * 3 for level in levels]


_SIXTEEN = _grey(0, 4, 128, 255)
_BIG = GREY16.astype(">u2").tobytes()

# File and its first pixels in RGB over white.
SHOWN: dict[str, tuple[bytes, list[list[int]]]] = {
    "16-bit PNG": (saved(Image.fromarray(GREY16)), _SIXTEEN),
    "16-bit TIFF": (saved(Image.fromarray(GREY16), "TIFF"), _SIXTEEN),
    "16-bit TIFF, LZW": (saved(Image.fromarray(GREY16), "TIFF", compression="tiff_lzw"), _SIXTEEN),
    "16-bit TIFF, big endian": (tiff(_BIG, bits=16, order=">"), _SIXTEEN),
    "16-bit PGM": (b"P5\n4 1\n65535\n" + _BIG, _SIXTEEN),
    "16-bit JPEG 2000": (saved(Image.fromarray(GREY16.repeat(8, 0)), "JPEG2000"), _SIXTEEN),
    "12-bit PGM": (b"P5\n4 1\n4095\n" + np.array([0, 100, 2048, 4095], ">u2").tobytes(), _grey(0, 6, 128, 255)),
    "12-bit TIFF": (tiff(bytes([0x00, 0x0F, 0xFF, 0x80, 0x01, 0x00]), bits=12), _grey(0, 255, 128, 16)),
    "PGM as text": (b"P2\n4 1\n1000\n0 100 500 1000\n", _grey(0, 26, 128, 255)),
    "4-bit PNG": (png(4, 0, (2, 1), [bytes([0x1F])]), _grey(17, 255)),
    "16-bit colour PNG": (png(16, 2, (1, 1), [struct.pack(">3H", 0, 32768, 65535)]), [[0, 128, 255]]),
    "16-bit colour TIFF": (tiff(GREY16.tobytes() * 3, 2, 16, 3), [[0, 3, 128], [255, 0, 3]]),
    "16-bit PNG with alpha": (png(16, 6, (1, 1), [struct.pack(">4H", 0, 32768, 65535, 32768)]), [[127, 191, 255]]),
    "16-bit grey PNG with alpha": (png(16, 4, (1, 1), [struct.pack(">2H", 32768, 32768)]), _grey(191)),
    "TIFF with white at 0": (tiff(bytes([0, 10, 20, 255]), photometric=0), _grey(255, 245, 235, 0)),
    "1-bit PNG": (saved(Image.fromarray(np.eye(2, dtype=bool))), _grey(255, 0)),
    "1-bit PNG, white transparent": (saved(Image.fromarray(np.eye(2, dtype=bool)), transparency=1), _grey(255, 0)),
    "grey with a transparent level": (
        saved(Image.fromarray(np.array([[0, 7, 9]], np.uint8)), transparency=0),
        _grey(255, 7, 9),
    ),
    "colour with a transparent colour": (saved(flat("RGB"), transparency=RED), _grey(255)),
    "palette": (saved(palette()), [[255, 0, 0], [0, 255, 0]]),
    "palette with a transparent colour": (saved(palette(), transparency=1), [[255, 0, 0], [255, 255, 255]]),
    "palette with alpha": (saved(palette(), transparency=bytes([128, 0])), [[255, 127, 127], [255, 255, 255]]),
    "palette and alpha in a TIFF": (
        saved(Image.new("RGBA", (2, 2), (100, 50, 7, 128)).convert("PA"), "TIFF"),
        [[177, 152, 131]],
    ),
    "GIF": (saved(palette(), "GIF"), [[255, 0, 0], [0, 255, 0]]),
    "grey and alpha": (saved(Image.new("LA", (2, 2), (100, 128))), _grey(177)),
    "grey and premultiplied alpha": (tiff(bytes([50, 128] * 4), samples=2, extra=[1]), _grey(177)),
    "grey and a channel that is no alpha": (tiff(bytes([50, 128] * 4), samples=2, extra=[0]), _grey(50)),
    "colour and alpha": (saved(Image.new("RGBA", (2, 2), (0, 0, 0, 51))), _grey(204)),
    "colour and premultiplied alpha": (tiff(bytes([50, 20, 0, 128] * 4), 2, samples=4, extra=[1]), [[177, 147, 127]]),
    "colour and alpha in WebP": (saved(Image.new("RGBA", (2, 2), (0, 0, 0, 51)), "WEBP", lossless=True), _grey(204)),
    "colour and infrared": (tiff(bytes([*RED, 9] * 4), 2, samples=4, extra=[0]), [[*RED]]),
    "CMYK JPEG": (saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), [[255, 0, 0]]),
    "CMYK TIFF": (saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), [[255, 0, 0]]),
    "LAB": (saved(flat("LAB"), "TIFF"), [[199, 31, 60]]),
    "YCbCr": (saved(flat("YCbCr"), "TIFF"), [[198, 30, 59]]),
    "BMP": (saved(flat("RGB"), "BMP"), [[*RED]]),
}  # fmt: skip

_HIDDEN = flat("RGBA")
_HIDDEN.putpixel((0, 0), (0, 0, 0, 0))
_HIDDEN.putalpha(0)

# File and a part of the message.
REFUSED: dict[str, tuple[bytes, str]] = {
    "floating point": (saved(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floating-point"),
    "PFM": (saved(Image.fromarray(np.ones((2, 2), np.float32)), "PPM"), "floating-point"),
    "32 bits": (saved(Image.fromarray(np.ones((2, 2), np.int32)), "TIFF"), "32-bit or signed"),
    "signed 16 bits": (tiff(GREY16.tobytes(), bits=16, sample_format=2), "32-bit or signed"),
    "signed 8 bits": (tiff(bytes(4), sample_format=2), "signed"),
    "16 bits with white at 0": (tiff(GREY16.tobytes(), photometric=0, bits=16), "white at 0"),
    "four bands": (tiff(bytes(16), samples=4, extra=[0, 0, 0]), "kind of pixels"),
    "16 bits with a transparent level": (saved(Image.fromarray(GREY16), transparency=0), "alpha channel"),
    "16-bit colour with a transparent colour": (png(16, 2, (1, 1), [bytes(6)], bytes(6)), "alpha channel"),
    "4 bits with a transparent level": (png(4, 0, (2, 1), [bytes([0x1F])], bytes([0, 15])), "alpha channel"),
    "hidden below transparency": (saved(_HIDDEN), "every pixel is transparent"),
    "nothing": (b"", "kind of pixels"),
    "a web page": (b"<html>", "kind of pixels"),
}  # fmt: skip


def with_preview(photo: bytes) -> bytes:
    """Return a JPEG file whose header contains a small copy of the picture, as cameras write it."""
    preview = saved(Image.new("RGB", (8, 8)), "JPEG")
    length, start = struct.pack("<II", 1, len(preview)), struct.pack("<II", 1, 44)
    entries = b"".join((b"\x02\x02\x04\x00" + length, b"\x01\x02\x04\x00" + start))
    header = b"Exif\0\0II*\0" + struct.pack("<IHIH", 8, 0, 14, 2) + entries + bytes(4) + preview
    return photo[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(header)) + header + photo[2:]


_NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
REFUSED |= {
    f"part of a {kind}": (saved(_NOISE, kind)[:-500], "not a readable image")
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
}
REFUSED["part of a JPEG with a preview"] = (with_preview(saved(_NOISE, "JPEG"))[:-500], "not a readable image")
