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


class Kept:
    """A configuration loader that hands out, once, what it has composed before; in all else the one that it is given.

    Args:
        loader: Hydra's.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._configs: dict[tuple[str, ...], DictConfig] = {}

    def keep(self, master_config: DictConfig, sweep_overrides: list[str]) -> None:
        """Compose a job's configuration."""
        config = self._loader.load_sweep_config(master_config, sweep_overrides)
        if len(self._configs) < _MOST:
            self._configs[tuple(sweep_overrides)] = config

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return a job's configuration, which is the caller's from now on."""
        config = self._configs.pop(tuple(sweep_overrides), None)
        return self._loader.load_sweep_config(master_config, sweep_overrides) if config is None else config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)

    def __getstate__(self) -> dict[str, Any]:
        return {"_loader": self._loader, "_configs": {}}  # Slurm's processes compose the one that they run

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class ReadOnce:
    """A repository of configuration files that hands out copies of what it has read before; in all else the given one.

    Args:
        repository: Hydra's.
        read: What was read of the same search path before, by path.
    """

    def __init__(self, repository: Any, read: dict[str, Any] | None = None) -> None:
        self._repository = repository
        self._read: dict[str, Any] = {} if read is None else read

    def load_config(self, config_path: str) -> Any:
        """Return a file's content, which is the caller's from now on."""
        if config_path not in self._read:
            self._read[config_path] = self._repository.load_config(config_path)
        return copy.deepcopy(self._read[config_path])

    def initialize_sources(self, config_search_path: Any) -> None:
        """Read from another search path from now on."""
        self._read = {}
        self._repository.initialize_sources(config_search_path)

    def __deepcopy__(self, _: dict[int, Any]) -> ReadOnce:
        return ReadOnce(copy.copy(self._repository), self._read)  # Hydra makes a copy to compose from, each time

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_repository"], name)

    def __getstate__(self) -> dict[str, Any]:
        return {"_repository": self._repository, "_read": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
