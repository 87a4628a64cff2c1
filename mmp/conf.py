"""Reading single files of ``conf/``, inside a Hydra application or outside of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
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
    hydra = GlobalHydra.instance()
    if hydra.is_initialized() and "generic" in hydra.config_loader().get_group_options("ranges"):
        yield  # one of our commands, perhaps with a search path of the user's
        return
    if not FOLDER.is_dir():
        raise MmpError(f"{FOLDER}: no such folder; install the project from a checkout, with pip install --editable")
    state = Singleton.get_state()  # of an application that is not ours
    hydra.clear()
    try:
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            yield
    finally:
        Singleton.set_state(state)
