"""How an image file becomes pixels: as a viewer shows it, or an error that names the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from mmp.errors import MmpError
from mmp.files import as_text

RULE = 1  # version of the rule; a change must change the fingerprint of data sets of files
LOOK = 2  # version of what look_at sees

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # channels of the network's input and Pillow's mode

_SAME_COLOUR = 8  # levels (of 256) by which colours may differ and still look the same
_VISIBLE = 32  # alpha (of 255) from which a pixel's colour counts

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF

_EIGHT_BITS = "save it with 8 bits a channel, or as a 16-bit greyscale PNG whose white is 65535"


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Raise an error that names the file if Pillow cannot read it in a ``with`` block.

    Raises:
        MmpError: instead of any other exception.
    """
    path = as_text(path)
    try:
        yield
    except MmpError as error:
        raise MmpError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        reason = "Pillow does not know its format or its kind of pixels"
        raise MmpError(f"{path}: not a readable image ({reason}); save it as PNG or remove it") from error
    except Exception as error:  # a damaged file can raise any exception in Pillow
        reason = str(error) or type(error).__name__
        raise MmpError(f"{path}: not a readable image ({reason}); replace the file or remove it") from error


@dataclass(frozen=True)
class Decoding:
    """The rule by which an image file becomes 8-bit pixels.

    The picture is turned as its EXIF orientation says. Grey levels of 12 or 16 bits are scaled to 8 bits. With one or
    three channels, transparent pixels are composed over a background; with two or four, the last channel is alpha, and
    a file without alpha is opaque. Colours become grey by ITU-R 601. Of several frames or pages, the first is taken.
    Colour profiles are not applied.

    Attributes:
        channels: 1 for grey, 2 for grey and alpha, 3 for colour, 4 for colour and alpha.
        background: A colour, by its name or as ``#rrggbb``.
    """

    channels: int
    background: str = "white"

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise MmpError(
                f"data.channels={self.channels}: image files are read with 1 (grey), 2 (grey and alpha), 3 (colour) or "
                "4 (colour and alpha) channels; images with other channels need a reader of their own"
            )
        try:
            ImageColor.getrgb(self.background)
        except (ValueError, AttributeError, TypeError) as error:
            raise MmpError(
                f"data.background={self.background}: no such colour; use a name such as white or grey, or '#rrggbb'"
            ) from error

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return an image as 8-bit pixels in the mode of ``channels``.

        Args:
            image: An opened file. It is turned in place.

        Raises:
            MmpError: if the range of its grey levels is not known; the message has no path.
        """
        white = _white_level(image)
        image.load()
        with suppress(Exception):  # EXIF data that cannot be read state no orientation
            ImageOps.exif_transpose(image, in_place=True)
        if white is not None:
            image = Image.fromarray((np.asarray(image) * (255 / white)).round().astype(np.uint8))
        mode = MODES[self.channels]
        if image.mode == mode and not image.has_transparency_data:
            return image
        if self.channels in (2, 4):
            return _with_alpha(image).convert(mode)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, self.background), _with_alpha(image))
        return image.convert("RGB").convert(mode)

    @property
    def recipe(self) -> str:
        """The rule as text with Python code, which prepares a variable ``image``."""
        alpha = (
            "image.convert('LA' if image.mode == 'La' else image.mode).convert('RGBA') if image.has_transparency_data "
            "else image.convert('RGB').convert('RGBA')"
        )
        steps = [
            "a file is opened by `PIL.Image.open(open(path, 'rb'))`, its first frame or page if it has several",
            "turned upright by `PIL.ImageOps.exif_transpose(image)`",
            "scaled to 8 bits if it has 16-bit grey levels, by `PIL.Image.fromarray((numpy.asarray(image) * (255 / "
            "white)).round().astype('uint8')) if image.mode.startswith('I') else image` with white = 65535 (4095 for a "
            "12-bit TIFF)",
            f"given an alpha channel by `{alpha}`",
        ]
        mode = MODES[self.channels]
        if self.channels in (1, 3):
            over = f"PIL.Image.alpha_composite(PIL.Image.new('RGBA', image.size, {self.background!r}), image)"
            steps += [f"composed over a background by `{over}`"]
            mode_code = "image.convert('RGB')" + (".convert('L')" if mode == "L" else "")
        else:
            mode_code = f"image.convert({mode!r})"
        return ", ".join([*steps, f"converted by `{mode_code}`"])

    def hides(self, ink: Any) -> bool:
        """Return whether a picture of one colour, with transparency around it, cannot be seen on the background.

        Args:
            ink: The colour, a list of three levels.
        """
        if self.channels not in (1, 3):
            return False
        picture, page = (
            Image.new("RGB", (1, 1), colour).convert(MODES[self.channels])
            for colour in (tuple(ink), ImageColor.getrgb(self.background)[:3])
        )
        difference = np.asarray(picture, np.int16) - np.asarray(page, np.int16)
        return bool(np.abs(difference).max() <= _SAME_COLOUR)


def look_at(path: str, content: bytes) -> dict[str, Any]:
    """Check an image file before the training. Only the pixels of some kinds are decoded.

    Args:
        path: The file's name, for messages.
        content: The file's bytes.

    Returns:
        Plain data; a key is missing if its value is false. ``alpha``: the file has transparency. ``frames``: it has
        several frames or pages. ``extra``: it has channels that Pillow does not read. ``ink``: the only colour that its
        visible pixels have, as three levels, if the rest of the picture is transparent. ``peak``: its highest level as
        a fraction of white, if it has more than 8 bits a channel.

    Raises:
        MmpError: if the file is not a readable image, or no rule covers its pixels.
    """
    with reading(path), Image.open(io.BytesIO(content)) as image:
        seen: dict[str, Any] = {}
        white = _white_level(image)
        _require_known_transparency(image)
        if image.format != "MPO" and getattr(image, "is_animated", False):
            seen["frames"] = True
        if any(rawmode.rstrip(";16LBN").endswith("X") for rawmode in _rawmodes(image) if image.format == "TIFF"):
            seen["extra"] = True
        if white is not None:
            seen["peak"] = round(float(np.asarray(image).max()) / white, 4)
        elif image.mode in ("RGB", "RGBA") and any(";16" in rawmode for rawmode in _rawmodes(image)):
            seen["peak"] = round(float(np.asarray(image)[..., :3].max()) / 255, 4)
        if white is None and image.has_transparency_data:
            seen["alpha"] = True
            if ink := _only_colour(np.asarray(_with_alpha(image))):
                seen["ink"] = ink
        elif "peak" not in seen and not _is_whole(image, content):
            with Image.open(io.BytesIO(content)) as again:
                again.load()
        return seen


def _is_whole(image: Image.Image, content: bytes) -> bool:
    """Return whether a file is certainly not truncated, from its checksums or its end; cheaper than to decode it."""
    if image.format == "PNG":
        try:
            image.verify()
        except Exception:  # also for a chunk that is not needed
            return False
        return True
    return image.format in ("JPEG", "MPO") and content.find(b"\xff\xd9", _start_of_pixels(content)) > 0


def _start_of_pixels(content: bytes) -> int:
    """Return where the pixels of a JPEG file begin: after its header, which may contain a whole JPEG as a preview."""
    at = 2
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] not in (b"\xda", b""):
        filled = content[at + 1] == 0xFF  # any number of these may stand before a marker
        at += 1 if filled else 2 + int.from_bytes(content[at + 2 : at + 4])
    return at


def _white_level(image: Image.Image) -> int | None:
    """Return the grey level of white; None if the image has 8 bits a channel or fewer.

    Raises:
        MmpError: if it is not known.
    """
    mode, kind = image.mode, image.format
    tags = getattr(image, "tag_v2", {})
    if mode == "L" and kind == "TIFF" and 2 in tags.get(_SAMPLE_FORMAT, ()):
        raise MmpError(f"the range of its signed grey levels is not known; {_EIGHT_BITS}")
    if mode != "F" and not mode.startswith("I"):
        return None
    if (kind in ("PNG", "JPEG2000") and mode == "I;16") or (kind == "PPM" and mode == "I"):
        return 65535
    if kind == "TIFF" and mode.startswith("I;16"):
        if tags.get(_PHOTOMETRIC) == 0:
            raise MmpError(f"its 16-bit grey levels have white at 0, which Pillow does not invert; {_EIGHT_BITS}")
        bits = tags.get(_BITS, (16,))[0]
        return int(2**bits - 1)
    pixels = "floating-point" if mode == "F" else "32-bit or signed" if mode == "I" else "16-bit"
    raise MmpError(f"the range of its {pixels} grey levels (mode {mode!r}) is not known; {_EIGHT_BITS}")


def _require_known_transparency(image: Image.Image) -> None:
    """Raise an error if a transparent colour is stated for more or fewer bits than Pillow returns."""
    if image.format == "PNG" and "transparency" in image.info and image.mode != "P":
        rawmode = next(iter(_rawmodes(image)), "")
        if rawmode.endswith(("16B", ";2", ";4")):
            raise MmpError(
                f"it states one of its colours as transparent, in pixels of another depth than 8 bits (mode "
                f"{image.mode!r}); save it with an alpha channel"
            )


def _rawmodes(image: Image.Image) -> list[str]:
    """Return Pillow's names of how the file stores its pixels."""
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    return [str(one[0] if isinstance(one, tuple) else one) for one in arguments if one]


def _with_alpha(image: Image.Image) -> Image.Image:
    """Return an image as RGBA, opaque if it has no transparency."""
    if not image.has_transparency_data:
        return image.convert("RGB").convert("RGBA")  # LAB has no direct way that is opaque
    return image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")


def _only_colour(pixels: np.ndarray) -> list[int] | None:
    """Return the colour of the visible pixels if they all have the same and others are transparent, or None.

    Args:
        pixels: uint8 (H, W, 4).

    Raises:
        MmpError: if no pixel is visible, although the colours differ.
    """
    colours, alpha = pixels[..., :3], pixels[..., 3]
    if alpha.max() == 0 and np.ptp(colours, axis=(0, 1)).max() > 0:
        raise MmpError("every pixel is transparent, but the colours below differ; save it without an alpha channel")
    if np.ptp(alpha) == 0:
        return None
    visible = colours[alpha >= min(_VISIBLE, int(alpha.max()))]
    low, high = visible.min(axis=0).astype(int), visible.max(axis=0).astype(int)
    return ((low + high) // 2).tolist() if (high - low).max() <= _SAME_COLOUR else None
