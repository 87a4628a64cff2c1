"""Copies: image files with the same content. Copies in one class stay in one split, and all others are reported."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from mmp.data.image_files import FileImages
from mmp.files import as_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """The images of a split.

    Attributes:
        split: Name of the split.
        files: The images of a folder.
        indices: Indices of the split's images in the folder.
    """

    split: str
    files: FileImages
    indices: Sequence[int]


@dataclass(frozen=True)
class _Place:
    split: str
    path: str
    label: int


def groups_of_copies(digests: Sequence[str], labels: Sequence[int]) -> np.ndarray | None:
    """Return the group of every image, shape (N,); copies of one image with the same label are one group.

    Returns:
        The groups, numbered by their first image; None if every image is its own group.
    """
    first: dict[tuple[str, int], int] = {}
    groups = [first.setdefault(key, index) for index, key in enumerate(zip(digests, labels, strict=True))]
    return np.array(groups) if len(first) < len(groups) else None


def report_copies(parts: Sequence[Part]) -> None:
    """Log a warning of copies in two splits, and one of copies in two classes.

    Args:
        parts: The splits.
    """
    digests = {id(part): part.files.digests for part in parts}
    counts = Counter(chain.from_iterable([digests[id(part)][i] for i in part.indices] for part in parts))
    if not any(count > 1 for count in counts.values()):
        return
    first: dict[str, _Place] = {}
    pairs: list[tuple[_Place, _Place]] = []
    for part in parts:
        paths, labels = part.files.paths, part.files.labels.tolist()
        for index in part.indices:
            digest = digests[id(part)][index]
            if counts[digest] > 1:
                place = _Place(part.split, paths[index], labels[index])
                if (original := first.setdefault(digest, place)) is not place:
                    pairs.append((original, place))
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
    if same := sum(one.split == other.split and one.label == other.label for one, other in pairs):
        log.info("images that are copies of one in the same split and class: %d", same)
