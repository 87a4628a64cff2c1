"""The sweeper composes each configuration once, and passes it to the launcher."""

from __future__ import annotations

import copy
import importlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from mmp.config.choices import FOLDER
from mmp.config.registration import register

JOBS = [["signal=product", "seed=1"], ["strategy=p70", "finetune.epochs=3"]]


class Counted:
    """Hydra's loader, which records the configurations that it composes."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.composed = loader, list[list[str]]()
        self.repository = loader.repository

    def load_sweep_config(self, master_config: Any, sweep_overrides: list[str]) -> Any:
        self.composed.append(sweep_overrides)
        return self.loader.load_sweep_config(master_config, sweep_overrides)

    def get_group_options(self, group: str) -> list[str]:
        return self.loader.get_group_options(group)


def plugins() -> Any:
    return importlib.import_module("hydra_plugins.mmp_sweepers")  # which Hydra has just reloaded


@pytest.fixture
def grid():
    register()
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        config = hydra.compose_config("prune", [], RunMode.MULTIRUN, from_shell=False)
        counted = Counted(hydra.config_loader)
        sweeper = plugins().Grid(max_batch_size=None, params=None)
        context = HydraContext(config_loader=counted, callbacks=None)
        sweeper.setup(hydra_context=context, task_function=lambda _: None, config=config)
        yield sweeper, counted, config


@pytest.mark.slow
def test_a_checked_configuration_is_launched_without_composing_it_again(grid) -> None:
    sweeper, counted, config = grid
    loader = sweeper.launcher.hydra_context.config_loader
    sweeper.validate_batch_is_legal(JOBS)
    assert counted.composed == JOBS
    for job in JOBS:
        launched = loader.load_sweep_config(config, job)
        expected = counted.loader.load_sweep_config(config, job)
        assert OmegaConf.to_container(launched, resolve=False) == OmegaConf.to_container(expected, resolve=False)
    assert counted.composed == JOBS


@pytest.mark.slow
def test_a_configuration_is_passed_on_only_once_since_launchers_change_it(grid) -> None:
    sweeper, counted, config = grid
    loader = sweeper.launcher.hydra_context.config_loader
    sweeper.validate_batch_is_legal(JOBS)
    first, second = (loader.load_sweep_config(config, JOBS[1]) for _ in range(2))
    assert first is not second
    assert counted.composed == [*JOBS, JOBS[1]]


@pytest.mark.slow
def test_workers_start_after_the_first_configuration_is_composed(grid, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeper, counted, _ = grid
    counts = list[Any]()

    @contextmanager
    def starting(jobs: int):
        counts.append((jobs, len(counted.composed)))
        yield
        counts.append(len(counted.composed))

    sweeper.launcher.starting = starting
    sweeper.validate_batch_is_legal([*JOBS, ["seed=3"]])
    assert counts == [(3, 1), 3]


def test_a_grid_without_jobs_is_refused(grid) -> None:
    sweeper, *_ = grid
    with pytest.raises(Exception, match=r"no jobs to run: one of these values matches no choice"):
        sweeper.validate_batch_is_legal([])


@pytest.mark.slow
def test_few_configurations_are_kept_and_none_are_sent_to_workers(grid, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeper, counted, config = grid
    loader = sweeper.launcher.hydra_context.config_loader
    monkeypatch.setitem(type(loader).cache.__globals__, "_MOST_CACHED", 1)
    jobs = [*JOBS, ["seed=3"]]
    sweeper.validate_batch_is_legal(jobs)
    assert copy.copy(loader)._cache == {}
    sent = copy.copy(type(loader)({"a": 1}))  # copies by the methods that pickle uses
    assert list(sent.keys()) == ["a"]
    for job in jobs:
        loader.load_sweep_config(config, job)
    assert counted.composed == [*jobs, jobs[2]]


def test_other_methods_are_those_of_hydras_loader(grid) -> None:
    sweeper, _, _ = grid
    assert "generic" in sweeper.launcher.hydra_context.config_loader.get_group_options("ranges")


@pytest.fixture
def loader():
    register()
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        yield GlobalHydra.instance().hydra.config_loader


def composed(loader: Any, *overrides: str) -> Any:
    config = loader.load_configuration("prune", list(overrides), RunMode.RUN, from_shell=False)
    return OmegaConf.to_container(config, resolve=False)


@pytest.mark.slow
def test_files_are_read_once_and_give_the_same_configurations(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [("signal=product",), ("data=fashion_mnist", "model=vit", "finetune=strong"), ("signal=product",)]
    expected = [composed(loader, *job) for job in jobs]
    (files,) = {type(source) for source in loader.get_sources() if source.scheme() == "file"}
    read, load = list[str](), files.load_config

    def counted(self: Any, config_path: str) -> Any:
        read.append(config_path)
        return load(self, config_path)

    monkeypatch.setattr(files, "load_config", counted)
    loader.repository = plugins().CachedRepository(loader.repository)
    assert [composed(loader, *job) for job in jobs] == expected
    assert len(read) == len(set(read)) > 20


@pytest.mark.slow
def test_another_search_path_reads_its_own_files(loader: Any, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text("# @package _global_\nseed: 7\n")
    loader.repository = plugins().CachedRepository(loader.repository)
    composed(loader)
    assert composed(loader, f"hydra.searchpath=[file://{tmp_path}]", "experiment=own")["seed"] == 7
    with pytest.raises(MissingConfigException, match="own"):
        composed(loader, "experiment=own")


def test_cached_files_are_not_sent_to_workers(loader: Any) -> None:
    repository = plugins().CachedRepository(loader.repository)
    repository.load_config("prune")
    assert repository._cache
    sent = copy.copy(repository)  # copies by the methods that pickle uses
    assert sent._cache == {}
    assert sent.config_exists("prune")
    assert copy.deepcopy(sent).interpolated == set()  # Hydra copies it for each composition
