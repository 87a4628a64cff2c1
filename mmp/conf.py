"""Reading single files of ``conf/``, inside a Hydra application or outside of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mmp.errors import MmpError, nearest

FOLDER = Path(__file__).parents[1] / "conf"


def choices_of(group: str) -> list[str]:
    """Return the names of a config group's files, those that the user's own search path adds included."""
    with _hydra():
        return list(GlobalHydra.instance().config_loader().get_group_options(group))


def choose(group: str, name: str) -> DictConfig:
    """Return the content of one file of a group, its own defaults composed in.

    Raises:
        MmpError: if the group has no such file; with the nearest name.
    """
    with _hydra():
        options = choices_of(group)
        if name not in options:
            raise MmpError(f"{group}={name}: no such choice; {nearest(name, options)}")
        content: Any = compose(f"{group}/{name}")
    return content[group]


@contextmanager
def _hydra() -> Iterator[None]:
    if GlobalHydra.instance().is_initialized():
        yield
        return
    if not FOLDER.is_dir():
        raise MmpError(f"{FOLDER}: no such folder; install the project from a checkout, with pip install --editable")
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        yield
