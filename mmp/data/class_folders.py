"""Class folders: the images of one split, one folder per class.

Every folder is a class, and its images may be in subfolders. Files are images if Pillow reads their ending. Other files
are counted in a warning.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mmp.data.endings import counted, ending_of
from mmp.data.split_folders import PACKED
from mmp.data.walk import Walk, entries_of, is_folder
from mmp.errors import MmpError, listed
from mmp.files import as_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassFolders:
    """The images of one split.

    Attributes:
        folder: The folder of the split.
        classes: Names of the classes, in the order of the labels.
        samples: Path and label of every image.
    """

    folder: Path
    classes: tuple[str, ...]
    samples: list[tuple[str, int]]


def training_folders(folder: Path, classes: int) -> ClassFolders:
    """Return the training images. The order of classes and images is the order of torchvision's ``ImageFolder``.

    Args:
        folder: The folder of the split.
        classes: Number of classes that it must have (``data.classes``).

    Raises:
        MmpError: if the folder has another number of class folders or only one, one of them has no image, a link leads
            nowhere, or a folder cannot be read.
    """
    walk = Walk(folder)
    names, count = walk.classes, len(walk.classes)
    if not count == classes > 1:
        _require_unpacked(folder, walk)
        _require_several(folder, walk)
        raise MmpError(
            f"data.classes={classes}, but {folder} has {count} class folders ({listed(names)}); set data.classes="
            f"{count}"
        )
    samples, empty = _samples(walk, {name: label for label, name in enumerate(names)})
    if empty:
        raise MmpError(f"{folder}: no image in {listed(empty)}; add images, or remove the class from every split")
    walk.report()
    return ClassFolders(folder, tuple(map(as_text, names)), samples)


def evaluation_folders(folder: Path, train: ClassFolders) -> ClassFolders:
    """Return validation or test images, with the labels of the training images.

    A class without images is named in a warning.

    Args:
        folder: The folder of the split.
        train: The training images.

    Raises:
        MmpError: if the folder has a class folder that the training images do not have, or no images, a link leads
            nowhere, or a folder cannot be read.
    """
    walk = Walk(folder)
    label_of = {name: label for label, name in enumerate(train.classes)}
    labels = {name: label_of.get(as_text(name), -1) for name in walk.classes}
    missing = label_of.keys() - set(map(as_text, labels))
    if missing:
        _require_unpacked(folder, walk)
    if surplus := [as_text(name) for name, label in labels.items() if label < 0]:
        differing = sorted({*missing, *surplus})
        alike = {unicodedata.normalize("NFC", name).casefold() for name in differing}
        reason = " in capitals or in the form of accents" if 2 * len(alike) == len(differing) else ""
        raise MmpError(
            f"{folder}: its class folders differ from {train.folder}{reason} ({listed(differing)}); use the same names"
        )
    samples, empty = _samples(walk, labels)
    if not samples:
        found = counted(walk.unread + Counter(map(ending_of, walk.files))) or "it is empty"
        raise MmpError(f"{folder}: no images in class folders ({found}); add images, or remove the folder")
    if without := [*sorted(missing), *empty]:
        log.warning(
            "%s: no images of %d of %d classes: %s", as_text(folder), len(without), len(label_of), listed(without)
        )
    walk.report()
    return ClassFolders(folder, train.classes, samples)


def _samples(walk: Walk, labels: dict[str, int]) -> tuple[list[tuple[str, int]], list[str]]:
    """Return path and label of every image, and what is in the class folders without images."""
    samples: list[tuple[str, int]] = []
    empty: list[str] = []
    for name, label in labels.items():
        before = walk.unread.copy()
        images = walk.images(name)
        samples += [(path, label) for path in images]
        if not images:
            empty.append(f"{name} ({counted(walk.unread - before) or 'empty'})")
    return samples, empty


def _require_unpacked(folder: Path, walk: Walk) -> None:
    for name in walk.files:
        if (packed := PACKED.fullmatch(name)) and packed[1] not in walk.classes:
            raise MmpError(f"{folder / name}: is packed; unpack it into a folder per class, or move it elsewhere")


def _require_several(folder: Path, walk: Walk) -> None:
    if not walk.classes:
        found = counted(Counter(map(ending_of, walk.files))) or "it is empty"
        raise MmpError(f"{folder}: no class folders ({found}); put one folder of images per class there")
    if len(walk.classes) == 1:
        inside = [entry.name for entry in entries_of(folder / walk.classes[0]) if is_folder(entry)]
        if len(inside) > 1:
            raise MmpError(
                f"{folder}: only one class folder, {walk.classes[0]}, which contains {listed(inside)}; if these are "
                f"the classes, move them to {folder}"
            )
        raise MmpError(
            f"{folder}: only one class folder, {walk.classes[0]}, but a classifier needs two classes; add a folder of "
            "images of another class"
        )
