"""Endings of file names: which files are images."""

from __future__ import annotations

from collections import Counter
from functools import cache

from PIL import Image
from PIL.ImageFile import StubImageFile

from mmp.errors import listed
from mmp.files import as_text

_COMMON = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
_WITHOUT_PIXELS = {"EPS", "MPEG"}  # Pillow identifies MPEG only, and needs another program for EPS


def is_image(name: str) -> bool:
    """Return whether Pillow reads files of this ending, capitals or not."""
    ending = _ending(name)
    return ending in _COMMON or ending in _readable()


def ending_of(name: str) -> str:
    """Return the ending of a file's name in small letters, or ``without an ending``."""
    return as_text(_ending(name)) or "without an ending"


def _ending(name: str) -> str:
    dot = name.rfind(".")  # pathlib takes several times as long, which counts for 100,000 files
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def counted(endings: Counter[str]) -> str:
    """Return ``300 .heic, 12 .txt``, the most frequent ending first."""
    order = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    return listed(f"{count} {ending}" for ending, count in order)


@cache
def _readable() -> frozenset[str]:
    """Return the endings of all formats that Pillow, with the plugins that are registered with it, can read."""
    Image.init()
    formats = {
        name
        for name, (reader, _) in Image.OPEN.items()
        if not (isinstance(reader, type) and issubclass(reader, StubImageFile)) and name not in _WITHOUT_PIXELS
    }
    formats.add("MPO")  # Pillow reads these files, of cameras with two lenses, as JPEG
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)
