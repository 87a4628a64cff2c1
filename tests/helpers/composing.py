"""Configurations as ``hydra.compose`` returns them, from files that are read only once."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig
from places import CONF

from mmp.config.registration import register

_FILES: dict[str, Any] = {}


def composed(*overrides: str, name: str = "prune") -> DictConfig:
    """Return a command's configuration. Hydra composes the choices of files; the values are set as Hydra sets them.

    Raises:
        HydraException: for overrides that Hydra refuses.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [override for override in parsed if not _is_for_hydra(override)]
    chosen = (str(override.input_line) for override in parsed if override not in values)
    cfg = copy.deepcopy(_of_choices(name, _search_path(), *chosen))
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    return cfg


def _is_for_hydra(override: Override) -> bool:
    """Return whether an override chooses a file, sets a value of Hydra, or has several values."""
    key = override.key_or_group
    return (CONF / key).is_dir() or key.startswith("hydra.") or override.is_sweep_override()


def _search_path() -> str:
    """Return where Hydra looks for files now; empty if that is ``conf/``."""
    hydra = GlobalHydra.instance()
    return str(hydra.config_loader().get_search_path()) if hydra.is_initialized() else ""


@functools.lru_cache(maxsize=256)
def _of_choices(name: str, _search_path: str, *choices: str) -> DictConfig:
    if GlobalHydra.instance().is_initialized():
        return compose(name, list(choices))
    with files():
        return compose(name, list(choices))


@contextmanager
def files() -> Iterator[Any]:
    """Let Hydra compose ``conf/``, and yield its loader. It reads each file only once, as in a sweep."""
    registered()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader: Any = GlobalHydra.instance().config_loader()
        loader.repository = _read(loader.repository)
        yield loader


def _read(repository: Any) -> Any:
    """Return a repository with the files of all earlier ones."""
    cached = importlib.import_module("hydra_plugins.mmp_sweepers").CachedRepository(repository)
    cached._cache = _FILES
    return cached


@functools.cache
def registered() -> None:
    """Register the schema and the resolvers with Hydra, once."""
    register()
