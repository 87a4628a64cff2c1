"""Explanations: one line for every error that a user can cause, with the key, its value and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from mmp.config.choices import FOLDER
from mmp.errors import nearest

if TYPE_CHECKING:
    from hydra.errors import MissingConfigException


def explain(error: BaseException, folder: Path | None = None) -> str:
    """Return one line that says what is wrong, where it is, and what to do.

    Args:
        error: An error of this project, Hydra, OmegaConf, PyYAML or the file system.
        folder: The user's own folder of configurations, if there is one. Its files are among the valid choices.
    """
    from hydra.errors import ConfigCompositionException, MissingConfigException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_choice(error, [FOLDER, folder] if folder else [FOLDER])
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if isinstance(cause, OmegaConfBaseException):
        return explain_key(cause)
    if isinstance(error, YAMLError):
        return _explain_yaml(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; choose another folder, with hydra.run.dir=... or paths.results=..."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if group := re.search(r"Could not override '([^'@]+)", lines[0]):
        return f"{group[1]}: no such config group or key; {nearest(group[1], _groups())}"
    return " ".join(lines[:2])


def explain_key(error: OmegaConfBaseException) -> str:
    """Return one line that names the key of an OmegaConf error, what is wrong with it, and what to do."""
    message = (error.msg or str(error)).splitlines()[0]
    key = error.full_key or ""
    if missing := re.search(r"Missing mandatory value: (\S+)", message):  # in an interpolation: of a folder's name
        return f"{missing[1]}: must be set, with {missing[1]}=..."
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: must be set, with {key}=..."
    parent = error.parent_node
    if isinstance(error, ConfigKeyError | AttributeError) and isinstance(parent, DictConfig):
        last = str(error.key if error.key is not None else key)
        if not parent:
            return f"{key or last}: no such key; add it with +{key or last}=..."
        return f"{key or last}: no such key; {nearest(last, map(str, parent))}"
    return f"{key}: {message}" if key else message


def _explain_choice(error: MissingConfigException, folders: Iterable[Path]) -> str:
    """Name the choices of a group nearest to one that does not exist, those in subfolders of the group included."""
    parts = str(error.missing_cfg_file).split("/")
    depth = 2 if parts[0] == "hydra" else 1  # hydra/launcher is a group
    group, choice = "/".join(parts[:depth]), "/".join(parts[depth:])
    if not choice:  # a primary configuration
        group, choice = "--config-name", group
        names = {path.stem for folder in folders for path in folder.glob("*.yaml")}
        return f"{group}={choice}: no such file; {nearest(choice, names)}"
    options = set(error.options or ())
    for folder in folders:
        options |= {path.relative_to(folder / group).with_suffix("").as_posix() for path in _files(folder / group)}
    return f"{group}={choice}: no such choice; {nearest(choice, options)}"


def _explain_yaml(error: YAMLError) -> str:
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark):
        return f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.problem}); correct the file"
    return f"{getattr(error, 'name', 'a configuration file')}: not valid YAML ({' '.join(str(error).split())})"


def _files(folder: Path) -> Iterable[Path]:
    return folder.rglob("*.yaml")


def _groups() -> set[str]:
    return {path.parent.relative_to(FOLDER).as_posix() for path in _files(FOLDER)} - {"."}
