"""The cache that runs share: dense models, scores and accuracies are computed by the first run that needs them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from mmp.errors import MmpError
from mmp.files import locked, remove_unfinished
from mmp.tensors import load_tensors, save_tensors

log = logging.getLogger(__name__)


def cached_tensors(path: Path, compute: Callable[[], Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], bool]:
    """Read tensors from a cache file, or compute them and write the file.

    A lock makes sure that only one of several processes computes them. A damaged file is removed and computed again.

    Args:
        path: The file. Its name must contain a hash of everything that its content depends on.
        compute: Returns the tensors.

    Returns:
        The tensors on the CPU, and whether they were read from the cache.

    Raises:
        MmpError: if the cache cannot be written.
    """
    return cached_set({"": path}, "", lambda _: compute())


def cached_set(
    paths: Mapping[str, Path], wanted: str, compute: Callable[[str], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], bool]:
    """Like :func:`cached_tensors`, for one of several sets of tensors that are cheap to compute together.

    If the wanted set is missing, all sets are computed and written, one after the other: no two are in memory at once.

    Args:
        paths: The cache file of each set, by name.
        wanted: The name of the set to return.
        compute: Returns a set, given its name.

    Returns:
        The wanted set on the CPU, and whether it was read from the cache.

    Raises:
        MmpError: if the cache cannot be written.
    """
    path = paths[wanted]
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(Path(f"{min(paths.values())}.lock"), str(path)))
        except OSError as error:
            message = f"cannot write the cache {path.parent}: {error}; set paths.cache to another folder"
            raise MmpError(message) from error
        for file in paths.values():
            remove_unfinished(file)
        if path.is_file():
            try:
                return load_tensors(path), True
            except MmpError as error:
                log.warning("%s; computing it again", error)
                path.unlink()
        for name in paths:
            if name != wanted:
                save_tensors(paths[name], compute(name))
        tensors = {name: value.detach().cpu() for name, value in compute(wanted).items()}
        save_tensors(path, tensors)
        return tensors, False
