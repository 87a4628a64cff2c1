"""Files of CIFAR's Python version (Krizhevsky 2009): pickles, read without executing code."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmp.errors import MmpError, first_line


def read_names(path: Path, key: str) -> tuple[str, ...] | None:
    """Return the names of the classes; None if there is no such file, as in a subset of the data.

    Args:
        path: The file.
        key: The key of the names in it.

    Raises:
        MmpError: if the file is damaged, or would execute code.
    """
    if not path.is_file():
        return None
    with _unpickling(path, "list of CIFAR's classes"), path.open("rb") as file:
        return tuple(str(name) for name in _ArraysOnly(file, encoding="latin1").load()[key])


def read_batch(path: Path, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (N, 3, 32, 32) as uint8 and labels (N,) as int64.

    Args:
        path: The file.
        labels_key: The key of the labels in it.

    Raises:
        MmpError: if the file is missing or damaged, or would execute code.
    """
    with _unpickling(path, "batch of CIFAR images"), path.open("rb") as file:
        batch = _ArraysOnly(file, encoding="latin1").load()
        pixels = np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[labels_key], np.int64)
    if len(pixels) != len(labels):
        raise MmpError(f"{path}: {len(pixels)} images but {len(labels)} labels; the file is damaged, get it again")
    return pixels, labels


@contextmanager
def _unpickling(path: Path, what: str) -> Iterator[None]:
    """Raise an error that names the file if it cannot be unpickled in a ``with`` block."""
    try:
        yield
    except FileNotFoundError as error:
        raise MmpError(f"{path}: no such file; the data set is incomplete, set data.download=true") from error
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
