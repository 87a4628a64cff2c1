"""A grid sweeper that reads each configuration file once, and composes each value of the grid once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mmp.config.copies import copier_of
from mmp.config.explain import explain
from mmp.config.interruption import Interrupted, ignore_further
from mmp.errors import MmpError
from mmp.files import no_space

if TYPE_CHECKING:
    from mmp.sweeps.differences import Differences

_MOST_CACHED = 300  # configurations between check and launch; later ones are composed again, which bounds the memory


class Grid(BasicSweeper):
    """Every combination of the values on the command line.

    Hydra composes all configurations before the first job, so that a mistake in the last one is reported at once. It
    then composes each of them again for its launch. This sweeper launches the configurations that were checked, and
    makes most of them by their differences (:mod:`mmp.sweeps.differences`).
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set up the sweeper with a configuration loader that has a cache."""
        loader: Any = copy.copy(hydra_context.config_loader)
        loader.repository = CachedRepository(loader.repository)
        self._loader = CachedLoader(loader)
        context = replace(hydra_context, config_loader=self._loader)  # type: ignore[arg-type]
        super().setup(hydra_context=context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs.

        Raises:
            Interrupted: on Ctrl-C or SIGTERM, or if the disk is full, with the number of jobs that are done.
        """
        from mmp.sweeps.progress import stamps

        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        before = dict(stamps(folder))
        try:
            return _by_full_disk(super().sweep, arguments)
        except KeyboardInterrupt as error:
            ignore_further()
            raise Interrupted.by(error, f": {self._tally(folder, before)}{error}") from None

    def _tally(self, folder: Path, before: Mapping[Path, tuple[int, int]]) -> str:
        """Stop the display of the sweep, and return how many jobs are done."""
        from callbacks.multirun import SweepReport  # which imports Hydra's plugins, this one too
        from mmp.sweeps.jobs import expand
        from mmp.sweeps.tally import tally

        assert self.config is not None
        assert self.hydra_context is not None
        for callback in self.hydra_context.callbacks.callbacks:
            if isinstance(callback, SweepReport):
                callback.stop()
        return str(tally(folder, expand(self.config) or [], before, bool(self.config.get("force"))))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose the configuration of each job and cache it. The launcher starts its workers after the first one."""
        assert self.config is not None
        if not batch:
            values = " ".join(self.config.hydra.overrides.task)
            raise MmpError(f"no jobs to run: one of these values matches no choice: {values}")
        self._loader.cache(self.config, list(batch[0]))
        starting = getattr(self.launcher, "starting", None)
        with starting(len(batch)) if starting else nullcontext():
            for overrides in batch[1:]:
                self._loader.cache(self.config, list(overrides))


def _by_full_disk(sweep: Callable[[list[str]], Any], arguments: list[str]) -> Any:
    """Run a sweep; a full disk interrupts it, also while Hydra writes a file of its own."""
    try:
        return sweep(arguments)
    except OSError as error:
        if no_space(error):
            raise Interrupted.by_full_disk(explain(error)) from None
        raise


class Proxy:
    """Delegates every attribute that it does not define to another object. Only the other object is pickled.

    Args:
        other: The other object.
    """

    def __init__(self, other: Any) -> None:
        self._other = other
        self._cache: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_other"], name)

    def __reduce__(self) -> tuple[type[Proxy], tuple[Any]]:
        return type(self), (self._other,)


class CachedLoader(Proxy):
    """Hydra's configuration loader; it returns a configuration that was composed before, once."""

    _differences: Differences | None = None

    def cache(self, master_config: DictConfig, sweep_overrides: list[str]) -> None:
        """Compose and cache a job's configuration, unless it follows from others."""
        if self._differences is None:
            from mmp.sweeps.differences import Differences

            compose = partial(self._other.load_sweep_config, master_config)
            self._differences = Differences(compose, self._other.repository)
        if self._differences.covers(sweep_overrides):
            return
        config = self._other.load_sweep_config(master_config, sweep_overrides)
        if len(self._cache) < _MOST_CACHED:
            self._cache[tuple(sweep_overrides)] = config

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return a job's configuration and remove it from the cache: the caller may change it."""
        if self._differences and self._differences.covers(sweep_overrides):
            return self._differences.config(sweep_overrides)
        config = self._cache.pop(tuple(sweep_overrides), None)
        return self._other.load_sweep_config(master_config, sweep_overrides) if config is None else config


class CachedRepository(Proxy):
    """Hydra's repository of configuration files; it reads each file once and returns copies.

    Its attributes are those of :class:`mmp.sweeps.differences.ReadFiles`.
    """

    def __init__(self, other: Any) -> None:
        super().__init__(other)
        self.interpolated: set[str] = set()
        self.elsewhere: set[str] = set()
        self.used: set[str] = set()

    def load_config(self, config_path: str) -> Any:
        """Return a copy of a file's content: the caller may change it."""
        self.used.add(config_path)
        if config_path not in self._cache:
            content = self._other.load_config(config_path)
            self._cache[config_path] = copier_of(content)
            if content:
                self._note(config_path, content.header, content.defaults_list or [])
        return self._cache[config_path]()

    def _note(self, config_path: str, header: Mapping[str, str | None], defaults: Sequence[Any]) -> None:
        if "${" in str(defaults):
            self.interpolated.add(config_path)
        if header.get("package") or any(default.package for default in defaults):
            self.elsewhere.add(config_path)

    def initialize_sources(self, config_search_path: Any) -> None:
        """Set a new search path and empty the cache."""
        self._cache = {}
        self._other.initialize_sources(config_search_path)

    def __deepcopy__(self, _: dict[int, Any]) -> CachedRepository:
        """Return a repository with a search path of its own and the same cache; Hydra makes one per composition."""
        copied = CachedRepository(copy.copy(self._other))
        copied._cache, copied.interpolated = self._cache, self.interpolated
        copied.elsewhere, copied.used = self.elsewhere, self.used
        return copied
