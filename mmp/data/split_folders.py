"""The folders of the splits below ``data.root``, by their usual names."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from itertools import chain
from pathlib import Path

from mmp.data.endings import counted, ending_of
from mmp.data.walk import entries_of, is_folder, require_target, unreadable
from mmp.errors import MmpError, listed, nearest
from mmp.files import as_text

log = logging.getLogger(__name__)

NAMES = {  # in any case
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # of test_set, train2017 and TrainImages
PACKED = re.compile(r"(.+?)\.(zip|7z|rar|tgz|tbz2?|txz|tar(\.\w+)?)", re.IGNORECASE)


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split: of ``train`` and, if they exist, of ``validation`` and ``test``.

    Args:
        root: The folder that contains them, or the class folders of the training images.

    Raises:
        MmpError: if the root is no folder, two folders are candidates for one split, a split is packed, or there is no
            folder of training images.
    """
    _require_root(root)
    entries = entries_of(root)
    folders = [entry.name for entry in entries if is_folder(entry)]
    found = {split: root / name for split in NAMES if (name := _folder_of(split, root, entries))}
    if not found:
        return {"train": _unsplit(root, folders, entries)}
    names = [path.name for path in found.values()]
    if "train" not in found:
        raise MmpError(
            f"{root}: no folder train beside {listed(names)}; put the training images into {root}/train/<class>/"
        )
    if unread := [name for name in folders if name not in names]:
        log.warning("%s: not read: %s; the splits are in %s", as_text(root), listed(unread), listed(names))
    return found


def _folder_of(split: str, root: Path, entries: list[os.DirEntry[str]]) -> str | None:
    """Return the name of the folder of a split, None if there is none."""
    candidates = []
    for entry in entries:
        if entry.name.lower() in NAMES[split]:
            require_target(entry)
            candidates += [entry.name] * is_folder(entry)
    if len(candidates) > 1:
        raise MmpError(
            f"{root}: the folders {' and '.join(candidates)} can both be the {split} split; rename or merge them"
        )
    if candidates:
        return candidates[0]
    for entry in entries:
        if (packed := PACKED.fullmatch(entry.name)) and packed[1].lower() in NAMES[split]:
            raise MmpError(f"{entry.path}: is packed; unpack it there, or move it to another folder")
    return None


def _unsplit(root: Path, folders: list[str], entries: list[os.DirEntry[str]]) -> Path:
    """Return the root itself, if the folders below it are classes."""
    arrange = f"arrange the images as {root}/train/<class>/<image>"
    if not folders:
        found = counted(Counter(ending_of(entry.name) for entry in entries)) or "it is empty"
        raise MmpError(f"{root}: no folder train and no class folders ({found}); {arrange}")
    _require_classes(root, folders)
    inside: set[tuple[str, ...]] = set()
    for below in (root / name for name in folders):
        subfolders = [entry.name for entry in entries_of(below) if is_folder(entry)]
        for name in subfolders:
            if name.lower() in NAMES["train"]:
                raise MmpError(f"{root}: no folder train, but {below / name}; set data.root={below}, or {arrange}")
        inside.add(tuple(subfolders))
    shown, count = as_text(root), len(folders)
    log.info("%s: no folder train, so its %d folders are the classes of the training images", shown, count)
    if count > 1 and len(inside) == 1 and len(same := inside.pop()) > 1:
        log.warning("%s: each of its folders contains %s; if these are the classes, %s", shown, listed(same), arrange)
    _warn_of_neighbours(root.absolute())
    return root


def _require_classes(root: Path, folders: list[str]) -> None:
    """Raise an error if folders are called like splits, such as ``training_set`` and ``test_set``."""
    words = {name: {word.lower() for word in _WORD.findall(name)} for name in folders}
    called = {split: [name for name in folders if words[name] & {*NAMES[split]}] for split in NAMES}
    if called["train"] and (called["validation"] or called["test"]):
        names = listed(chain.from_iterable(called.values()))
        raise MmpError(
            f"{root}: no folder train, but {names}; rename them to {', '.join(s for s in NAMES if called[s])}, or, if "
            f"they are classes, move them into {root}/train"
        )


def _warn_of_neighbours(root: Path) -> None:
    """Warn if a root is the folder of a training split and has other splits beside it."""
    others = {*NAMES["validation"], *NAMES["test"]}
    if root.name.lower() in NAMES["train"]:
        beside = [entry.name for entry in entries_of(root.parent) if entry.name.lower() in others]
        if beside:
            way_out = f"set data.root={as_text(root.parent)}"
            log.warning("%s: %s beside it is not read; %s", as_text(root), listed(beside), way_out)


def _require_root(root: Path) -> None:
    """Raise an error that says why a root is no folder that can be read."""
    try:
        if root.is_dir():
            return
        exists = root.exists()
        missing = next(path for path in (root, *root.parents) if path.parent.is_dir())
    except OSError as error:
        raise unreadable(root, error) from error
    if exists:
        way_out = "unpack it, and name the folder" if PACKED.fullmatch(root.name) else "name the folder of the images"
        raise MmpError(f"data.root={root}: a file, not a folder; {way_out}")
    names = [entry.name for entry in entries_of(missing.parent) if is_folder(entry)]
    hint = nearest(missing.name, names) if names else "there are no folders"
    raise MmpError(f"data.root={root}: no such folder; in {missing.parent.absolute()}: {hint}")
