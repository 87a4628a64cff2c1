"""Class folders: the images of one split, one folder per class.

Every folder is a class, and its images may be in subfolders. Files are images if Pillow reads their ending. Other files
are counted in a warning.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mmp.data.endings import counted, ending_of
from mmp.data.splits import PACKED
from mmp.data.walk import Walk
from mmp.errors import MmpError, listed
from mmp.files import as_text


@dataclass(frozen=True)
class ClassFolders:
    """The images of one split.

    Attributes:
        folder: The folder of the split.
        classes: Names of the class folders, in the order of the labels.
        samples: Path and label of every image.
    """

    folder: Path
    classes: tuple[str, ...]
    samples: list[tuple[str, int]]


def class_folders(folder: Path, classes: int) -> ClassFolders:
    """Return the images of one split, in the order of torchvision's ``ImageFolder``.

    Args:
        folder: The folder of the split.
        classes: Number of classes that it must have (``data.classes``).

    Raises:
        MmpError: if the folder has another number of class folders or only one, one of them has no image, a link leads
            nowhere, or a folder cannot be read.
    """
    walk = Walk(folder)
    _require_classes(folder, walk, classes)
    samples: list[tuple[str, int]] = []
    empty = []
    for label, name in enumerate(walk.classes):
        before = walk.unread.copy()
        images = walk.images(name)
        samples += [(path, label) for path in images]
        if not images:
            empty.append(f"{name} ({counted(walk.unread - before) or 'empty'})")
    if empty:
        raise MmpError(f"{folder}: no image in {listed(empty)}; add images, or remove the class from every split")
    walk.report()
    return ClassFolders(folder, tuple(map(as_text, walk.classes)), samples)


def require_same_classes(split: ClassFolders, train: ClassFolders) -> None:
    """Check that a split has the classes of the training images.

    Raises:
        MmpError: if a class is missing, or is missing in the training images.
    """
    if split.classes == train.classes:
        return
    differing = sorted(set(split.classes) ^ set(train.classes))
    alike = {unicodedata.normalize("NFC", name).casefold() for name in differing}
    reason = " in capitals or in the form of accents" if 2 * len(alike) == len(differing) else ""
    raise MmpError(
        f"{split.folder}: its class folders differ from {train.folder}{reason} ({listed(differing)}); "
        "use the same names"
    )


def _require_classes(folder: Path, walk: Walk, classes: int) -> None:
    names = walk.classes
    if len(names) == classes > 1:
        return
    for name in walk.files:
        if (packed := PACKED.fullmatch(name)) and packed[1] not in names:
            raise MmpError(f"{folder / name}: is packed; unpack it into a folder per class, or move it elsewhere")
    if not names:
        found = counted(Counter(map(ending_of, walk.files))) or "it is empty"
        raise MmpError(f"{folder}: no class folders ({found}); put one folder of images per class there")
    if len(names) == 1:
        raise MmpError(
            f"{folder}: only one class folder, {names[0]}, but a classifier needs two classes; add a folder of images "
            "of another class"
        )
    count = len(names)
    raise MmpError(
        f"data.classes={classes}, but {folder} has {count} class folders ({listed(names)}); set data.classes={count}"
    )
