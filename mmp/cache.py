"""The cache of dense models, scores and accuracies that runs share: each is made once, by whoever asks first."""

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
    """Read tensors from a cache file, or compute and write them, once for all processes that ask at once.

    Args:
        path: The file; its name must hold a hash of everything that decides its contents.
        compute: Makes the tensors.

    Returns:
        The tensors, and whether they came from the cache. A damaged file is thrown away and made again.
    """
    return cached_set({"": path}, "", lambda _: compute())


def cached_set(
    paths: Mapping[str, Path], wanted: str, compute: Callable[[str], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], bool]:
    """Do as :func:`cached_tensors` for one of several sets of tensors that are cheap to make together.

    If it is missing, all sets are computed and written, and no two are in memory at once.

    Args:
        paths: The file of each set, by name.
        wanted: The name of the set that is asked for.
        compute: Makes a set, by its name.

    Returns:
        The set, and whether it came from the cache.
    """
    path = paths[wanted]
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(Path(f"{min(paths.values())}.lock"), str(path)))
        except OSError as error:
            told = f"cannot write the cache {path.parent}: {error}; set paths.cache to another folder"
            raise MmpError(told) from error
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
