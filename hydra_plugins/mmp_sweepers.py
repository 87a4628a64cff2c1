"""Hydra's own sweeper, which reads each file of the configuration once, and composes each job's once, not twice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mmp.errors import MmpError

_MOST = 300  # configurations that are kept between check and launch


class Grid(BasicSweeper):
    """Every combination of the values given.

    Hydra composes all configurations before the first job, so that a mistake in the last is told at once, and each one
    again where it is launched; here what was checked is what is launched.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra hands to a sweeper."""
        loader: Any = copy.copy(hydra_context.config_loader)
        loader.repository = ReadOnce(loader.repository)
        self._kept = Kept(loader)
        context = replace(hydra_context, config_loader=self._kept)  # type: ignore[arg-type]
        super().setup(hydra_context=context, task_function=task_function, config=config)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose the configuration of each job, and keep it for its launch; workers start once the first is right."""
        assert self.config is not None
        if not batch:
            raise MmpError(f"no job: one of {' '.join(self.config.hydra.overrides.task)} matches nothing")
        self._kept.keep(self.config, list(batch[0]))
        starting = getattr(self.launcher, "starting", None)
        with starting(len(batch)) if starting else nullcontext():
            for overrides in batch[1:]:
                self._kept.keep(self.config, list(overrides))


class Standin:
    """Stands for another object, which does whatever is not done here; what is kept meanwhile is not pickled.

    Args:
        other: That object.
    """

    def __init__(self, other: Any) -> None:
        self._other = other
        self._kept: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_other"], name)

    def __getstate__(self) -> dict[str, Any]:
        return {"_other": self._other, "_kept": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class Kept(Standin):
    """A configuration loader, for Hydra's, that hands out, once, what it has composed before."""

    def keep(self, master_config: DictConfig, sweep_overrides: list[str]) -> None:
        """Compose a job's configuration."""
        config = self._other.load_sweep_config(master_config, sweep_overrides)
        if len(self._kept) < _MOST:
            self._kept[tuple(sweep_overrides)] = config

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return a job's configuration, which is the caller's from now on."""
        config = self._kept.pop(tuple(sweep_overrides), None)
        return self._other.load_sweep_config(master_config, sweep_overrides) if config is None else config


class ReadOnce(Standin):
    """A repository of configuration files, for Hydra's, that hands out copies of what it has read before."""

    def load_config(self, config_path: str) -> Any:
        """Return a file's content, which is the caller's from now on."""
        if config_path not in self._kept:
            self._kept[config_path] = self._other.load_config(config_path)
        return copy.deepcopy(self._kept[config_path])

    def initialize_sources(self, config_search_path: Any) -> None:
        """Read from another search path from now on."""
        self._kept = {}
        self._other.initialize_sources(config_search_path)

    def __deepcopy__(self, _: dict[int, Any]) -> ReadOnce:
        """Return what Hydra composes a configuration from, with a search path of its own and all that was read."""
        copied = ReadOnce(copy.copy(self._other))
        copied._kept = self._kept
        return copied
