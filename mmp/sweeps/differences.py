"""The configurations of a grid of jobs, made by their differences from its first job.

Hydra composes a configuration in a tenth of a second. The jobs of a grid have overrides of the same keys. If each
override changes a section of its own, the configuration of a job is the first job's with the sections of other values.
Hydra then composes only the first job, and one job for each other value.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from mmp.config.copies import copier_of

Overrides = Sequence[str]


class ReadFiles(Protocol):
    """What is known of the configuration files that Hydra reads.

    Attributes:
        interpolated: The files whose list of defaults names another file by the values of others. If there is one, no
            configuration follows from others.
        elsewhere: The files that set values of other sections than their own.
        used: The files that were read since this set was last empty, from the disk or from a cache.
    """

    interpolated: set[str]
    elsewhere: set[str]
    used: set[str]


@dataclass(frozen=True)
class Section:
    """The section of a configuration that one override changes.

    Attributes:
        key: The key of the section.
        node: Its content.
        choices: The choices of files that Hydra notes for it.
    """

    key: str
    node: Any
    choices: dict[str, Any]

    def put(self, config: DictConfig) -> None:
        """Put the section into another configuration."""
        node = copy.deepcopy(self.node)
        node._set_parent(config)
        _nodes(config)[self.key] = node  # a setter would change its type
        config.hydra.runtime.choices.update(self.choices)


class Differences:
    """Configurations that differ from the first one in whole sections.

    Args:
        compose: Hydra's composition of a job from its overrides.
        files: What is known of the configuration files that Hydra reads.
    """

    def __init__(self, compose: Callable[[list[str]], DictConfig], files: ReadFiles) -> None:
        self._compose, self._files = compose, files
        self._first: list[str] | None = None
        self._sections: dict[tuple[int, str], Section | None] = {}

    def covers(self, overrides: Overrides) -> bool:
        """Return whether :meth:`config` can make a job's configuration, after Hydra has composed what it needs.

        Raises:
            HydraException: if an override is wrong.
        """
        if self._first is None:
            self._first = list(overrides)
            first, self._read = self._composed(list(overrides))
            self._copy, self._plain = copier_of(first), _plain(first)
        changed = self._changed(overrides)
        sections = [self._section(index, overrides[index]) for index in changed or ()]
        keys = {section.key for section in sections if section}
        return changed is not None and len(keys) == len(changed) and not (changed and self._files.interpolated)

    def config(self, overrides: Overrides) -> DictConfig:
        """Return the configuration of a job for which :meth:`covers` is true. The caller may change it."""
        config: DictConfig = self._copy()
        for index in self._changed(overrides) or ():
            section = self._sections[index, overrides[index]]
            assert section is not None
            section.put(config)
        given = [override for override in map(_parsed, overrides) if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in given]
        names = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            given, exclude_keys=names.exclude_keys, item_sep=names.item_sep, kv_sep=names.kv_sep
        )
        return config

    def _changed(self, overrides: Overrides) -> list[int] | None:
        """Return the indices of the overrides that differ from the first job's; None if the keys differ."""
        assert self._first is not None
        if [_key(override) for override in overrides] != [_key(override) for override in self._first]:
            return None
        return [index for index, override in enumerate(overrides) if override != self._first[index]]

    def _section(self, index: int, override: str) -> Section | None:
        """Return the section that an override changes; None if it changes anything else."""
        if (index, override) not in self._sections:
            assert self._first is not None
            key = _key(override).partition(".")[0]
            simple = re.fullmatch(r"[\w.]+", _key(override)) and key != "hydra"
            other = [*self._first[:index], override, *self._first[index + 1 :]]
            self._sections[index, override] = self._difference(key, *self._composed(other)) if simple else None
        return self._sections[index, override]

    def _composed(self, overrides: list[str]) -> tuple[DictConfig, set[str]]:
        """Return a job's configuration, and the files that Hydra read for it."""
        self._files.used.clear()
        config = self._compose(overrides)
        return config, set(self._files.used)

    def _difference(self, key: str, config: DictConfig, read: set[str]) -> Section | None:
        if (read ^ self._read) & self._files.elsewhere:
            return None
        first, other = copy.deepcopy(self._plain), _plain(config)
        choices = [content["hydra"]["runtime"].pop("choices") for content in (first, other)]
        for content in (first, other):
            content.pop(key, None)
            del content["hydra"]["overrides"], content["hydra"]["job"]["override_dirname"]
        if first != other or choices[0].keys() != choices[1].keys() or key not in config:
            return None
        node = _nodes(config)[key]
        node._set_parent(None)  # otherwise it would keep the whole configuration
        return Section(key, node, {name: choice for name, choice in choices[1].items() if choice != choices[0][name]})


def _key(override: str) -> str:
    return override.partition("=")[0]


def _nodes(config: DictConfig) -> dict[str, Any]:
    nodes: dict[str, Any] = vars(config)["_content"]
    return nodes


def _plain(config: DictConfig) -> dict[str, Any]:
    content: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    return content


@functools.cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)
