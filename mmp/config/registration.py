"""Registration with Hydra: the schema, and the resolvers that ``conf/`` uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import OmegaConf

from mmp.config.home import expand_home
from mmp.config.identity import run_name, run_title
from mmp.config.matching import sweep_folder
from mmp.config.schema import PlanConfig, PruneConfig, TrainConfig
from mmp.config.yaml_text import write_by_libyaml


def register() -> None:
    """Register the schema and the resolvers. The module of every command calls this when it is imported."""
    write_by_libyaml()
    store = ConfigStore.instance()
    Plugins.instance()  # registers the configurations of launchers, some of which conf/hydra/launcher replaces
    for name in ("joblib.yaml", "submitit_slurm.yaml", "ray.yaml"):
        store.repo["hydra"]["launcher"].pop(name, None)
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="prune_schema", node=PruneConfig)
    store.store(name="plan_schema", node=PlanConfig)
    OmegaConf.register_new_resolver("mmp.home", expand_home, replace=True)
    OmegaConf.register_new_resolver("mmp.run_name", lambda *, _root_: run_name(_root_), replace=True)
    OmegaConf.register_new_resolver("mmp.run_title", lambda *, _root_: run_title(_root_), replace=True)
    OmegaConf.register_new_resolver("mmp.group", lambda *, _root_: _group_of(_root_), replace=True)
    OmegaConf.register_new_resolver("mmp.sweep_folder", lambda *, _root_: sweep_folder(_root_), replace=True)


def _group_of(cfg: Any) -> str | None:
    """Return the group of a run in a dashboard: the name of its sweep; None for a single run."""
    alone = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN
    return None if alone else Path(sweep_folder(cfg)).name
