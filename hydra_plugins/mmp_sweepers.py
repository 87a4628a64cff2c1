"""Hydra's own sweeper, which composes the configuration of each job once rather than twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

_MOST = 300  # configurations that are kept between check and launch


class Grid(BasicSweeper):
    """Every combination of the values given.

    Hydra composes all configurations before the first job, so that a mistake in the last is told at once, and each one
    again where it is launched; here what was checked is what is launched.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra hands to a sweeper."""
        self._kept = Kept(hydra_context.config_loader)
        context = replace(hydra_context, config_loader=self._kept)  # type: ignore[arg-type]
        super().setup(hydra_context=context, task_function=task_function, config=config)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose the configuration of each job, and keep it for its launch."""
        assert self.config is not None
        for overrides in batch:
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
        return {"_loader": self._loader, "_configs": {}}  # worker processes compose what they run

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
