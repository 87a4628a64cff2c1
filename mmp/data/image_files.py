"""Labelled images in files, each read when it is indexed, identified by the contents of the files."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import Image
from torch import Tensor

from mmp.data.decoding import LOOK, RULE, Decoding, look_at, reading
from mmp.data.digests import Content, contents
from mmp.errors import MmpError
from mmp.files import as_text

log = logging.getLogger(__name__)

_LOOK = f"{RULE}, {LOOK}, Pillow {PIL.__version__}"  # another version may see other things in a file

_DARK = 0.25  # the highest level, as a fraction of white, below which a data set of 12 or 16 bits is suspect


class FileImages:
    """Image files, each read when it is indexed.

    Args:
        samples: Path and class of every image.
        root: A folder that contains all of them.
        decoding: The rule by which a file becomes pixels.
        transform: A transform from a PIL image to a float32 tensor.

    Attributes:
        memory: A folder that keeps the digests of unchanged files, so that they are read only once; None for none.
    """

    def __init__(
        self,
        samples: list[tuple[str, int]],
        root: Path,
        decoding: Decoding,
        transform: Callable[[Image.Image], Tensor],
    ) -> None:
        self.decoding = decoding
        self.memory: Path | None = None
        self._samples, self._root, self._transform = samples, root, transform
        self.labels = torch.tensor([label for _, label in samples])

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._samples[index]
        # Pillow 13 reads some turned TIFFs wrongly if it gets a path, because it maps the file.
        with reading(path), Path(path).open("rb") as file, Image.open(file) as image:
            return self._transform(self.decoding(image)), label

    @property
    def paths(self) -> list[str]:
        """Path of every file."""
        return [path for path, _ in self._samples]

    @property
    def digests(self) -> list[str]:
        """SHA-256 of the content of every file.

        Raises:
            MmpError: if a file cannot be read, or is not an image.
        """
        return [content.digest for content in self._contents]

    def check(self) -> None:
        """Check all files before the training, and log what the rule of decoding leaves out.

        Raises:
            MmpError: if a file is not an image, no rule covers its pixels, or the rule makes its picture invisible.
        """
        seen = [content.seen for content in self._contents]
        for (path, _), one in zip(self._samples, seen, strict=True):
            self._require_visible(path, one)
        transparent = sum("alpha" in one for one in seen)
        if self.decoding.channels in (2, 4) and not transparent:
            raise MmpError(
                f"data.channels={self.decoding.channels}: no image of {len(self)} has transparency, such as "
                f"{as_text(self.paths[0])}; set data.channels={self.decoding.channels - 1}"
            )
        if self.decoding.channels in (1, 3) and transparent:
            log.info(
                "%d of %d images have transparency: composed over data.background=%s",
                transparent, len(self), self.decoding.background,
            )  # fmt: skip
        self._warn(seen)

    def _require_visible(self, path: str, seen: Mapping[str, Any]) -> None:
        """Raise an error if the rule of decoding makes a picture invisible, or Pillow does not read a channel."""
        if "ink" in seen and self.decoding.hides(seen["ink"]):
            raise MmpError(
                f"{as_text(path)}: its visible pixels have the colour of the background (data.background="
                f"{self.decoding.background}), so the picture disappears; set data.background to another colour, "
                "or read transparency as a channel with data.channels=2 or 4"
            )
        if "extra" in seen and self.decoding.channels in (2, 4):
            raise MmpError(
                f"{as_text(path)}: has a further channel that is not alpha, which Pillow does not read; "
                "set data.channels=3 to leave it out"
            )

    def _warn(self, seen: Sequence[Mapping[str, Any]]) -> None:
        """Log a warning of images with several frames, and one of images that are read almost black."""
        several = [path for path, one in zip(self.paths, seen, strict=True) if "frames" in one]
        if several:
            log.warning(
                "%d of %d images have several frames or pages, such as %s: only the first is read",
                len(several), len(self), as_text(several[0]),
            )  # fmt: skip
        peaks = [one["peak"] for one in seen if "peak" in one]
        if peaks and max(peaks) < _DARK:
            log.warning(
                "%d of %d images have more than 8 bits, but no pixel is above %.1f %% of white: they are read almost "
                "black, as a viewer shows them; scale them to the full range if they have fewer bits than their files",
                len(peaks), len(self), 100 * max(peaks),
            )  # fmt: skip

    def fingerprint(self) -> str:
        """Return a SHA-256 of the names, relative to the root, the contents and the classes of all files.

        Raises:
            MmpError: if a file cannot be read, or is not an image.
        """
        sha = hashlib.sha256(f"{RULE}\n".encode())
        for name, digest, label in zip(self._names, self.digests, self.labels.tolist(), strict=True):
            sha.update(os.fsencode(name) + f"|{digest}|{label}\n".encode())
        return sha.hexdigest()

    @cached_property
    def _names(self) -> list[str]:
        """The paths relative to the root."""
        prefix = f"{self._root}{os.sep}"
        return [
            path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, self._root)
            for path, _ in self._samples
        ]

    @cached_property
    def _contents(self) -> list[Content]:
        return contents(self._root, self._names, self.memory, look_at, _LOOK)
