"""The user's home folder: a path in a setting may begin with ``~``, as in ``data.root=~/images``.

A shell expands ``~`` only at the start of a word, so a command gets it as it was typed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATHS = ("data.root", "model.checkpoint", "model.pretrained_file", "paths.results", "paths.cache", "match", "picture")
_PLAIN = re.compile(r"[\w./:@+-]+", re.ASCII)  # needs no quotes on Hydra's command line
_VALUE = re.compile(r"~[^,\s]*")


def expand_home(path: str) -> str:
    """Return a path with the user's home folder in place of a leading ``~``."""
    return os.path.expanduser(path)  # noqa: PTH111  Path.expanduser raises for a user who does not exist


def home_path(path: str) -> Path:
    """Return a path with the user's home folder in place of a leading ``~``: a type of arguments for ``argparse``."""
    return Path(expand_home(path))


def with_home(settings: Any) -> Any:
    """Return settings whose paths have the home folder in place of a leading ``~``.

    Args:
        settings: Plain data, or a dataclass of :mod:`mmp.config.schema`, which is changed.
    """
    for address in PATHS:
        *sections, key = address.split(".")
        section = settings
        for name in sections:
            section = _get(section, name)
        value = _get(section, key)
        if isinstance(value, str) and value.startswith("~"):
            if isinstance(section, dict):
                section[key] = expand_home(value)
            else:
                setattr(section, key, expand_home(value))
    return settings


def _get(section: Any, key: str) -> Any:
    return section.get(key) if isinstance(section, dict) else getattr(section, key, None)


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which every value that begins with ``~`` begins with the home folder.

    Hydra accepts no such value without quotes, so this changes the meaning of no valid command.
    """
    return [_expand_argument(argument) for argument in arguments]


def _expand_argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals or "~" not in value:
        return argument
    quote = not key.startswith("-")  # an option such as --config-dir is none of Hydra's overrides
    return f"{key}=" + ",".join(_expanded(part, quote) for part in value.split(","))


def _expanded(value: str, quote: bool) -> str:
    if not _VALUE.fullmatch(value):
        return value
    path = expand_home(value)
    if not quote or _PLAIN.fullmatch(path):
        return path
    return "'" + path.replace("'", "\\'") + "'"
