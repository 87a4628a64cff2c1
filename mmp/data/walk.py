"""A walk through folders of images: hidden files and by-products are passed over, links are followed once."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmp.data.endings import counted, ending_of, is_image
from mmp.errors import MmpError
from mmp.files import as_text

log = logging.getLogger(__name__)

BY_PRODUCTS = (
    "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__",
    "Thumbs.db", "ehthumbs.db", "desktop.ini",
)  # fmt: skip
_BY_PRODUCTS = {name.lower() for name in BY_PRODUCTS}


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name, without hidden ones and by-products of operating systems.

    Raises:
        MmpError: if the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _BY_PRODUCTS]
    except OSError as error:
        raise unreadable(folder, error) from error
    return sorted(kept, key=lambda entry: entry.name)


def require_target(entry: os.DirEntry[str]) -> None:
    """Check that the target of an entry that is a link exists and may be read.

    Raises:
        MmpError: if not.
    """
    if entry.is_symlink():
        path = Path(entry.path)
        try:
            path.stat()
        except OSError as error:
            raise MmpError(
                f"{path}: the link to {path.readlink()} leads nowhere ({error.strerror}); restore the target or remove "
                "the link"
            ) from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; false for a link that cannot be followed."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def unreadable(path: Path, error: OSError) -> MmpError:
    """Return the error for a folder that the operating system does not list."""
    return MmpError(f"{path}: cannot be read ({error.strerror or error}); allow reading it, or correct data.root")


class Walk:
    """Finds the class folders of a split, and the images below them.

    Args:
        folder: The folder of the split.

    Attributes:
        classes: Names of the class folders, sorted.
        files: Names of the files beside them.
        unread: Number of files below class folders that are not read, by ending.

    Raises:
        MmpError: if a folder cannot be read, or a link leads nowhere.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        real = Path(os.path.realpath(folder))
        self._above = {str(real), *map(str, real.parents)}
        self._again: list[str] = []
        self.unread: Counter[str] = Counter()
        self.classes: list[str] = []
        self.files: list[str] = []
        for entry in self._entries(folder):
            if not entry.is_dir():
                self.files.append(entry.name)
            elif entry.is_symlink() and os.path.realpath(entry.path) in self._above:
                self._again.append(entry.path)
            else:
                self.classes.append(entry.name)

    def images(self, name: str) -> list[str]:
        """Return the paths of all images below a class folder, in the order of torchvision's ``ImageFolder``.

        Raises:
            MmpError: if a folder cannot be read, or a link leads nowhere.
        """
        found: list[tuple[str, str]] = []  # folder and name
        image_links: list[tuple[str, str]] = []
        folders, folder_links = [str(self._folder / name)], list[str]()
        seen = set(self._above)
        while folders or folder_links:  # links last, so that an image keeps its own path if it has one
            folder = folders.pop() if folders else folder_links.pop()
            real = os.path.realpath(folder)
            if real in seen:
                self._again.append(folder)
                continue
            seen.add(real)
            for entry in self._entries(Path(folder)):
                linked = entry.is_symlink()
                if entry.is_dir():
                    (folder_links if linked else folders).append(entry.path)
                elif is_image(entry.name) and entry.is_file():
                    (image_links if linked else found).append((folder, entry.name))
                else:
                    self.unread[ending_of(entry.name)] += 1
            folder_links.sort(reverse=True)
        found += self._new(image_links, found)
        return [f"{folder}{os.sep}{name}" for folder, name in sorted(found)]

    def _new(self, links: list[tuple[str, str]], found: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Yield the links to images that were not found before."""
        real_folders = {folder: os.path.realpath(folder) for folder, _ in found} if links else {}
        seen = {f"{real_folders[folder]}{os.sep}{name}" for folder, name in found} if links else set()
        for folder, name in sorted(links):
            real = os.path.realpath(path := f"{folder}{os.sep}{name}")
            if real in seen:
                self._again.append(path)
            else:
                seen.add(real)
                yield folder, name

    @staticmethod
    def _entries(folder: Path) -> list[os.DirEntry[str]]:
        entries = entries_of(folder)
        for entry in entries:
            require_target(entry)
        return entries

    def report(self) -> None:
        """Log a warning of files that are not read, and of links to files and folders that are read already."""
        folder = as_text(self._folder)
        unread = self.unread + Counter(ending_of(name) for name in self.files if not is_image(name))
        if count := unread.total():
            files = "1 file was" if count == 1 else f"{count} files were"
            way_out = "convert images among them to an ending that Pillow reads, such as .png"
            log.warning("%s: %s not read: %s; %s", folder, files, counted(unread), way_out)
        if outside := sum(map(is_image, self.files)):
            log.warning("%s: images in no class folder are not read: %d", folder, outside)
        if count := len(self._again):
            first = as_text(self._again[0])
            log.warning("%s: links to files or folders that are read already: %d, such as %s", folder, count, first)
