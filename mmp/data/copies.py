"""Copies: image files with the same content. Copies in one class stay in one split, and all others are reported."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mmp.data.image_files import FileImages
from mmp.files import as_text

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image is.

    Attributes:
        path: Its file.
        digest: Digest of the file's content.
        label: Its class.
        split: Its split.
    """

    path: str
    digest: str
    label: int
    split: str


def groups_of_copies(digests: Sequence[str], labels: Sequence[int]) -> np.ndarray | None:
    """Return the group of every image, shape (N,); copies of one image with the same label are one group.

    Returns:
        The groups, numbered by their first image; None if every image is its own group.
    """
    first: dict[tuple[str, int], int] = {}
    groups = [first.setdefault(key, index) for index, key in enumerate(zip(digests, labels, strict=True))]
    return np.array(groups) if len(first) < len(groups) else None


def places_of(files: FileImages, split: str, indices: Sequence[int]) -> Iterator[Place]:
    """Yield the places of the images of a split.

    Args:
        files: The images of a folder.
        split: Name of the split.
        indices: Indices of its images in the folder.
    """
    paths, digests, labels = files.paths, files.digests, files.labels.tolist()
    for index in indices:
        yield Place(paths[index], digests[index], labels[index], split)


def report_copies(places: Iterable[Place]) -> None:
    """Log a warning of copies in two splits, and one of copies in two classes.

    Args:
        places: The places of all images.
    """
    first: dict[str, Place] = {}
    pairs = [(first.setdefault(place.digest, place), place) for place in places]
    pairs = [(original, copy) for original, copy in pairs if copy is not original]
    across = [pair for pair in pairs if pair[0].split != pair[1].split]
    disputed = [pair for pair in pairs if pair[0].label != pair[1].label]
    if across:
        shown = " and ".join(f"{as_text(place.path)} ({place.split})" for place in across[0])
        way_out = "remove the copies, since they make accuracies too high"
        log.warning("images that are copies of one in another split: %d, such as %s; %s", len(across), shown, way_out)
    if disputed:
        shown = " and ".join(as_text(place.path) for place in disputed[0])
        way_out = "remove those in the wrong class"
        log.warning("images that are copies of one in another class: %d, such as %s; %s", len(disputed), shown, way_out)
    if same := len(pairs) - len({id(pair[1]) for pair in (*across, *disputed)}):
        log.info("images that are copies of one in the same split and class: %d", same)
