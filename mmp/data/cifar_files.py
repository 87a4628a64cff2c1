"""Files of CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the Python version and in the binary version.

The Python version has pickles, which are read without executing code. The binary version has records of one or two
bytes for the labels and 3,072 bytes for the pixels, and the names of the classes as text. In both, a picture is all red
values, then green, then blue.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmp.errors import MmpError, first_line

PIXELS = (3, 32, 32)

Batch = tuple[np.ndarray, np.ndarray]  # pixels (N, 3, 32, 32) as uint8, and labels (N,) as int64


@dataclass(frozen=True)
class CifarFiles:
    """The files of a version of a CIFAR data set.

    Attributes:
        folder: Name of their folder below ``data.root``.
        train: Names of the training files.
        test: Name of the test file.
        names: Name of the file with the names of the classes.
        read: Returns the images of a file.
        read_names: Returns the names of the classes from a file.

    The two functions raise `MmpError` if the file is damaged; the first one also if it is missing.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    read: Callable[[Path], Batch]
    read_names: Callable[[Path], tuple[str, ...]]


def read_records(path: Path, classes: int, label_bytes: int = 1) -> Batch:
    """Return the images of a file of the binary version.

    Args:
        path: The file.
        classes: Number of classes.
        label_bytes: Bytes of a record before the pixels. The last one is the label.

    Raises:
        MmpError: if the file is missing, empty or truncated, or has a label of another class.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise MmpError(f"{path}: cannot be read ({first_line(error)}); get it again") from error
    size = label_bytes + int(np.prod(PIXELS))
    if not len(content) or len(content) % size:
        raise MmpError(
            f"{path}: has {len(content)} bytes, no multiple of the {size} of a picture of CIFAR's binary version; the "
            "file is damaged, get it again"
        )
    records = content.reshape(-1, size)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise MmpError(f"{path}: has the label {labels.max()}, but there are {classes} classes; get the file again")
    return records[:, label_bytes:].reshape(-1, *PIXELS), labels


def read_lines(path: Path) -> tuple[str, ...]:
    """Return the names of the classes from a text file with a name a line.

    Raises:
        MmpError: if the file is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MmpError(f"{path}: not a list of CIFAR's classes ({first_line(error)}); get it again") from error
    return tuple(line.strip() for line in lines if line.strip())


def read_pickled_names(path: Path, key: str) -> tuple[str, ...]:
    """Return the names of the classes from a pickle.

    Args:
        path: The file.
        key: The key of the names in it.

    Raises:
        MmpError: if the file is damaged, or would execute code.
    """
    with _unpickling(path, "list of CIFAR's classes"), path.open("rb") as file:
        return tuple(str(name) for name in _ArraysOnly(file, encoding="latin1").load()[key])


def read_pickle(path: Path, labels_key: str) -> Batch:
    """Return the images of a file of the Python version.

    Args:
        path: The file.
        labels_key: The key of the labels in it.

    Raises:
        MmpError: if the file is missing or damaged, or would execute code.
    """
    with _unpickling(path, "batch of CIFAR images"), path.open("rb") as file:
        batch = _ArraysOnly(file, encoding="latin1").load()
        pixels = np.asarray(batch["data"], np.uint8).reshape(-1, *PIXELS)
        labels = np.asarray(batch[labels_key], np.int64)
    if len(pixels) != len(labels):
        raise MmpError(f"{path}: {len(pixels)} images but {len(labels)} labels; the file is damaged, get it again")
    return pixels, labels


def _missing(path: Path) -> MmpError:
    return MmpError(f"{path}: no such file; the data set is incomplete, set data.download=true")


@contextmanager
def _unpickling(path: Path, what: str) -> Iterator[None]:
    """Raise an error that names the file if it cannot be unpickled in a ``with`` block."""
    try:
        yield
    except FileNotFoundError as error:
        raise _missing(path) from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise MmpError(f"{path}: not a {what} ({first_line(error)}); the file is damaged, get it again") from error


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays, lists, dicts, strings and numbers, and refuses everything that could execute code.

    torchvision's reader unpickles any file whose checksum is right, and therefore reads no subset of the data.
    """

    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "_frombuffer", "encode", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few functions that reconstruct arrays."""
        if name in self._ALLOWED and (module.split(".", maxsplit=1)[0] == "numpy" or module == "_codecs"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it contains {module}.{name}, which no batch of images needs")


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10 = (
    CifarFiles(
        folder="cifar-10-batches-py",
        train=_BATCHES,
        test="test_batch",
        names="batches.meta",
        read=partial(read_pickle, labels_key="labels"),
        read_names=partial(read_pickled_names, key="label_names"),
    ),
    CifarFiles(
        folder="cifar-10-batches-bin",
        train=tuple(f"{name}.bin" for name in _BATCHES),
        test="test_batch.bin",
        names="batches.meta.txt",
        read=partial(read_records, classes=10),
        read_names=read_lines,
    ),
)
CIFAR100 = (
    CifarFiles(
        folder="cifar-100-python",
        train=("train",),
        test="test",
        names="meta",
        read=partial(read_pickle, labels_key="fine_labels"),
        read_names=partial(read_pickled_names, key="fine_label_names"),
    ),
    CifarFiles(
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
        read=partial(read_records, classes=100, label_bytes=2),
        read_names=read_lines,
    ),
)
