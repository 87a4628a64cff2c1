"""Explanations: one line for every error that a user can cause, with the key, its value and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from mmp.config.choices import FOLDER
from mmp.errors import MmpError, nearest, one_line

if TYPE_CHECKING:
    from hydra.errors import HydraException, MissingConfigException


def explain(error: BaseException, folder: Path | None = None) -> str:
    """Return one line that says what is wrong, where it is, and what to do.

    Args:
        error: An error of this project, Hydra, OmegaConf, PyYAML or the file system.
        folder: The user's own folder of configurations, if there is one. Its files are valid choices, too.
    """
    from hydra.errors import HydraException, MissingConfigException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_choice(error, [FOLDER, folder] if folder else [FOLDER])
    if isinstance(error, OmegaConfBaseException):
        return explain_key(error)
    if isinstance(error, YAMLError):
        return _explain_yaml(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; choose another folder, with hydra.run.dir=... or paths.results=..."
    if isinstance(error, HydraException):
        return _explain_hydra(error)
    return one_line(error)


def explain_key(error: OmegaConfBaseException) -> str:
    """Return one line that names the key of an OmegaConf error, what is wrong with it, and what to do."""
    for cause in _chain(error):  # an interpolation that needs a missing value, such as a folder's name, hides its key
        if isinstance(cause, MmpError):
            return str(cause)
        if isinstance(cause, MissingMandatoryValue) and cause.full_key:
            return f"{cause.full_key}: must be set, with {cause.full_key}=..."
    key, parent = error.full_key or "", error.parent_node
    if isinstance(error, ConfigKeyError | AttributeError) and isinstance(parent, DictConfig):
        last = str(error.key if error.key is not None else key)
        if not parent:
            return f"{key or last}: no such key; add it with +{key or last}=..."
        return f"{key or last}: no such key; {nearest(last, map(str, parent))}"
    message = (error.msg or str(error)).splitlines()[0]
    return f"{key}: {message}" if key else message


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the error that it was raised from, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _explain_choice(error: MissingConfigException, folders: Sequence[Path]) -> str:
    """Name the choices nearest to one that does not exist. Subfolders of the group count, too."""
    parts = str(error.missing_cfg_file).split("/")
    depth = 2 if parts[0] == "hydra" else 1  # hydra/launcher is one group
    group, choice = "/".join(parts[:depth]), "/".join(parts[depth:])
    if not choice:  # the file is a primary configuration, not a choice of a group
        names = {path.stem for folder in folders for path in folder.glob("*.yaml")}
        return f"--config-name={group}: no such file; {nearest(group, names)}"
    options = set(error.options or ())
    for folder in (folder / group for folder in folders):
        options |= {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    return f"{group}={choice}: no such choice; {nearest(choice, options)}"


def _explain_hydra(error: HydraException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if override := getattr(error, "override", ""):
        return f"{override}: not a valid override; write key=value, and quote a value with special characters"
    if found := re.search(r"'(.+)/([^'/]+)'.* must be a DictConfig", lines[0]):
        return f"{found[1]}={found[2]}: the file must contain keys with values, as in name: {found[2]}"
    if found := re.search(r"Could not override '([^']*[/@][^']*)'", lines[0]):
        return _explain_override(found[1])
    where = f"{found[1]}={found[2]}: " if (found := re.match(r"In '(.+)/([^'/]+)'", lines[0])) else ""
    for cause in _chain(error):
        if isinstance(cause, OmegaConfBaseException):
            return f"{where}{explain_key(cause)}"
    return " ".join(lines[:4])


def _explain_override(override: str) -> str:
    groups = {path.parent.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/**/*.yaml")}
    group = override.partition("@")[0]
    if group in groups:
        return f"{override}: not in the defaults list; add it with +{override}=..."
    return f"{override}: no such config group; {nearest(group, groups)}"


def _explain_yaml(error: YAMLError) -> str:
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark):
        return f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.problem}); correct the file"
    return f"{getattr(error, 'name', 'a file')}: not valid YAML ({one_line(error)}); correct the file"
