"""Configurations that are made by their differences are the ones that Hydra composes."""

from __future__ import annotations

import copy
import importlib
import itertools
from pathlib import Path
from typing import Any

import pytest
from composing import registered
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from places import CONF

from mmp.config.identity import run_name


@pytest.fixture(autouse=True)
def _configurations():
    registered()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


class Grid:
    """A grid's jobs, its loader, and the number of configurations that Hydra composes for it."""

    def __init__(self, *fixed: str, **axes: list[str]) -> None:
        plugins = importlib.import_module("hydra_plugins.mmp_sweepers")
        named = {name.replace("__", "."): values for name, values in axes.items()}
        swept = [f"{key}={','.join(values)}" for key, values in named.items()]
        self.hydra: Any = copy.copy(GlobalHydra.instance().config_loader())
        self.hydra.repository = plugins.CachedRepository(self.hydra.repository)
        self.master = self.hydra.load_configuration("prune", [*fixed, *swept], RunMode.MULTIRUN)
        loader, compose, self.composed = copy.copy(self.hydra), self.hydra.load_sweep_config, 0

        def counted(master: Any, overrides: list[str]) -> Any:
            self.composed += 1
            return compose(master, overrides)

        loader.load_sweep_config = counted
        self.loader = plugins.CachedLoader(loader)
        given = [override for override in fixed if not override.startswith("hydra")]
        combined = itertools.product(*named.values())
        self.jobs = [[*given, *(f"{key}={x}" for key, x in zip(named, job, strict=True))] for job in combined]

    def check(self) -> None:
        """Check all jobs, as the sweeper does before the launch."""
        for job in self.jobs:
            self.loader.cache(self.master, job)

    def require_hydras(self) -> None:
        """Assert that the launched configurations are those of Hydra, with the same types and flags."""
        for job in self.jobs:
            made, expected = (x.load_sweep_config(self.master, job) for x in (self.loader, self.hydra))
            assert OmegaConf.to_container(made) == OmegaConf.to_container(expected)
            assert _kinds(made) == _kinds(expected)
            assert run_name(made) == run_name(expected)


def _kinds(node: Any) -> Any:
    """Return the type, the key and the flags of a node and of all nodes below it."""
    own = (type(node), {**vars(node._metadata), "resolver_cache": None}, node._get_parent() is None)
    if node._is_none() or node._is_missing() or node._is_interpolation() or not OmegaConf.is_config(node):
        return own
    keys = node if OmegaConf.is_dict(node) else range(len(node))
    return own, [_kinds(node._get_node(key)) for key in keys]


GRIDS = {
    "choices": ((), {"signal": ["magnitude", "product"], "strategy": ["balanced", "p30", "p90"]}),
    "models": (("hydra/job_logging=disabled",), {"model": ["cnn", "vit"], "data": ["digits", "fashion_mnist"]}),
    "values": (
        ("finetune.epochs=3", "+trainer.benchmark=true"),
        {"seed": ["0", "1"], "budget__sparsity": ["0.9", "0.8"]},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("fixed", "axes"), GRIDS.values(), ids=list(GRIDS))
def test_a_grid_has_the_configurations_of_hydra(fixed: tuple[str, ...], axes: dict[str, list[str]]) -> None:
    grid = Grid(*fixed, **axes)
    grid.check()
    assert grid.composed == 1 + sum(len(values) - 1 for values in axes.values())
    grid.require_hydras()
    assert grid.composed == 1 + sum(len(values) - 1 for values in axes.values())


@pytest.mark.slow
def test_two_keys_of_one_section_are_composed_by_hydra() -> None:
    grid = Grid(finetune=["default", "strong"], finetune__epochs=["2", "3"])
    grid.check()
    assert grid.composed == 4
    grid.require_hydras()


@pytest.mark.slow
def test_jobs_with_other_keys_are_composed_by_hydra() -> None:
    grid = Grid(seed=["0", "1"])
    grid.jobs.append(["strategy=p70"])
    grid.check()
    grid.require_hydras()


def _own(folder: Path, **files: str) -> str:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n{text}\n")
    return f"hydra.searchpath=[file://{folder}]"


@pytest.mark.slow
def test_a_choice_that_changes_several_sections_is_composed_by_hydra(tmp_path: Path) -> None:
    files = {
        "trainer__a": "trainer: {devices: 1}\ndata: {batch_size: 5}",
        "trainer__b": "trainer: {devices: 1}\ndata: {batch_size: 6}",
    }
    grid = Grid(_own(tmp_path, **files), trainer=["a", "b"], strategy=["p30", "p70"])
    grid.check()
    grid.require_hydras()


@pytest.mark.slow
@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
@pytest.mark.parametrize("nested", [False, True])
def test_a_choice_that_sets_another_section_as_the_first_job_does_is_composed_by_hydra(
    order: list[str], nested: bool, tmp_path: Path
) -> None:
    text = "trainer: {devices: 1}\ndata: {batch_size: 64}"  # as data=digits has it
    own = _own(tmp_path, trainer__b=text)
    (tmp_path / "trainer" / "a.yaml").write_text("devices: 1\n")
    if nested:
        (tmp_path / "trainer" / "c.yaml").write_text(f"# @package _global_\n{text}\n")
        (tmp_path / "trainer" / "b.yaml").write_text("defaults: [c, _self_]\n")
    grid = Grid(own, trainer=order, data=["digits", "cifar10"])
    grid.check()
    grid.require_hydras()


@pytest.mark.slow
def test_other_configurations_are_not_kept_whole() -> None:
    grid = Grid(seed=["0", "1"], strategy=["p30", "p70"])
    grid.check()
    assert not grid.loader._cache
    sections = [section for section in grid.loader._differences._sections.values() if section]
    assert len(sections) == 2
    assert all(section.node._get_parent() is None for section in sections)


@pytest.mark.slow
def test_a_file_for_two_values_together_is_found(tmp_path: Path) -> None:
    defaults = "[{a: x}, {b: x}, {optional both@_global_: '${a}_${b}'}, _self_]"
    texts = {"prune": f"defaults: {defaults}", "both/y_y": "seed: 9"}
    for name, text in {**texts, **dict.fromkeys(("a/x", "a/y", "b/x", "b/y"), "c: 1")}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        grid = Grid(a=["x", "y"], b=["x", "y"])
        grid.check()
        assert [grid.loader.load_sweep_config(grid.master, job).get("seed") for job in grid.jobs] == [None] * 3 + [9]


@pytest.mark.slow
def test_a_configuration_may_be_changed_by_its_launch() -> None:
    grid = Grid(signal=["magnitude", "product"], strategy=["p30", "p70"])
    grid.check()
    for job in grid.jobs:
        launched = grid.loader.load_sweep_config(grid.master, job)
        launched.seed, launched.signal.name, launched.strategy.name = 7, "other", "other"
    grid.require_hydras()


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["signal=nonsense", "finetune.epochs=many", "finetune.nonsense=1"])
def test_a_wrong_value_is_refused_before_the_launch(wrong: str) -> None:
    key, _, value = wrong.partition("=")
    grid = Grid(strategy=["p30", "p70"])
    grid.jobs = [[*job, f"{key}={x}"] for job in grid.jobs for x in ("default", value)][:3]
    with pytest.raises(HydraException):
        grid.check()
