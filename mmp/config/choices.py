"""Single files of ``conf/`` by name, inside a Hydra application or outside of one.

``conf/`` travels inside the installed package; in a checkout it is the folder at the top. A user's own ``conf/`` adds
to it (:mod:`mmp.config.command`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmp.errors import MmpError, nearest

_INSTALLED, _CHECKOUT = Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


def choices_of(group: str) -> list[str]:
    """Return the names of a config group's files, those that the user's own search path adds included."""
    if application := _application():
        return list(application.get_group_options(group))
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


def choose(group: str, name: str) -> DictConfig:
    """Return the content of one file of a group, its own defaults composed in.

    Raises:
        MmpError: if the group has no such file; with the nearest name.
    """
    options = choices_of(group)
    if name not in options:
        raise MmpError(f"{group}={name}: no such choice; {nearest(name, options)}")
    if _application() is None:
        return _read(group, name)
    from hydra import compose

    return compose(f"{group}/{name}")[group]


def _read(group: str, name: str) -> DictConfig:
    """Return the content of one file, on top of the files of its group that its defaults list names."""
    content: Any = OmegaConf.load(FOLDER / group / f"{name}.yaml")
    defaults = content.pop("defaults", ["_self_"])
    merged: Any = OmegaConf.merge(*(content if entry == "_self_" else _read(group, entry) for entry in defaults))
    return merged


def _application() -> Any:
    """Return the configuration loader of the Hydra application that runs, if it is one of our commands."""
    if "hydra.core.global_hydra" not in sys.modules:
        return None
    from hydra.core.global_hydra import GlobalHydra

    hydra = GlobalHydra.instance()
    ours = hydra.is_initialized() and "generic" in hydra.config_loader().get_group_options("ranges")
    return hydra.config_loader() if ours else None
