"""Single files of ``conf/`` by name, inside a Hydra application or outside of one.

``conf/`` is part of the installed package; in a checkout it is the folder at the top. A user's own ``conf/`` adds
choices to commands (:mod:`mmp.config.command`); Python code outside a command reads only the built-in ones.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from mmp.errors import MmpError, nearest

_INSTALLED, _CHECKOUT = Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT

Section = TypeVar("Section")

_OBJECTS = {
    "strategy": "pass a Strategy",
    "ranges": "pass a RangeTable",
    "signal": "pass an object with name, needs and score",
    "criterion": "pass a Criterion",
}  # what a call in Python may have in place of a name


def choices_of(group: str) -> list[str]:
    """Return the choices of a config group: the names of its files, here and in the user's own folder."""
    if application := _application():
        return list(application.get_group_options(group))
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


def choose(group: str, name: str) -> DictConfig:
    """Return the content of one file of a group, together with the files that its defaults list names.

    Raises:
        MmpError: if the group has no such choice; the message names the nearest one. If the working folder has a file
            of that name, which only commands read, the message says so.
    """
    options, application = choices_of(group), _application()
    if name not in options:
        file = Path("conf", group, f"{name}.yaml")
        if application is None and file.is_file():
            raise MmpError(
                f"{group}={name}: no built-in choice; only commands read {file} of the working folder, so in Python "
                f"{_OBJECTS.get(group, nearest(name, options))}"
            )
        raise MmpError(f"{group}={name}: no such choice; {nearest(name, options)}")
    if application is None:
        return _read(group, name)
    from hydra import compose

    return compose(f"{group}/{name}")[group]


def read_choice(group: str, name: str, read: Callable[[DictConfig], Section]) -> Section:
    """Return what a function makes of one file of a group; a process does so once with each file of the package.

    Args:
        group: Name of the group.
        name: Name of the choice.
        read: A function that checks the file's content and returns it in another form.

    Raises:
        MmpError: if the group has no such choice, or the function raises it.
    """
    if _application() is None and name in choices_of(group):
        return copy.deepcopy(_of_the_package(group, name, read))
    return read(choose(group, name))


@functools.cache
def _of_the_package(group: str, name: str, read: Callable[[DictConfig], Section]) -> Section:
    return read(_read(group, name))


def require_names(arguments: Iterable[str]) -> None:
    """Check that the overrides of config groups are names of choices. Hydra itself would fail on a number or null.

    Args:
        arguments: The overrides of a command line; other arguments are ignored.

    Raises:
        MmpError: if one is not; the message names the choices.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_dir()}
    for argument in arguments:
        key, _, value = argument.partition("=")
        group = key.lstrip("+").partition("@")[0]
        if group not in groups or not value:
            continue
        try:
            name = OverridesParser.create().parse_override(argument).value()
        except HydraException:  # explained where Hydra reads the line
            continue
        names = name if isinstance(name, list) else [name]
        if any(entry is None or isinstance(entry, int | float | dict | list) for entry in names):
            raise MmpError(f"{argument}: {group} takes the name of a choice; {nearest(value, choices_of(group))}")


def _read(group: str, name: str) -> DictConfig:
    """Return the content of one file, merged over the files of its group that its defaults list names."""
    content: Any = OmegaConf.load(FOLDER / group / f"{name}.yaml")
    defaults = content.pop("defaults", ["_self_"])
    merged: Any = OmegaConf.merge(*(content if entry == "_self_" else _read(group, entry) for entry in defaults))
    return merged


def _application() -> Any:
    """Return the configuration loader of the running Hydra application, if it is a command of this project."""
    if "hydra.core.global_hydra" not in sys.modules:
        return None
    from hydra.core.global_hydra import GlobalHydra

    hydra = GlobalHydra.instance()
    ours = hydra.is_initialized() and "generic" in hydra.config_loader().get_group_options("ranges")
    return hydra.config_loader() if ours else None
