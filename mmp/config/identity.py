"""What a run is: the settings that decide its numbers, their hash, and the name made from both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmp.config.matching import matched_weights
from mmp.errors import MmpError
from mmp.files import file_digest
from mmp.pruning.patterns import UNSTRUCTURED

NO_CRITERION = "none"
OF_DENSE = ("model", "data", "dense", "trainer", "seed")  # the settings that decide a dense model
STRATEGY, SEARCHED = "strategy", "searched"  # of allocation; anything else is the name of a criterion

# What does not change a run's numbers, and so is no part of its identity.
_INCIDENTAL = {"paths", "logger", "sweep", "force", "hydra"}
_INCIDENTAL_IN = {
    "trainer": {"enable_progress_bar", "log_every_n_steps"},
    "data": {"download", "workers", "eval_batch_size", "dense_epochs", "finetune_epochs"},
    "callbacks": {"progress"},
    "reconstruct": {"cache_megabytes"},
}


def identity(cfg: Any) -> dict[str, Any]:
    """Return the settings that decide a run's numbers, as plain data."""
    if isinstance(cfg, DictConfig):
        kept: dict[str, Any] = {str(key): _plain(cfg[key]) for key in cfg if key not in _INCIDENTAL}
    else:
        kept = {key: value for key, value in asdict(cfg).items() if key not in _INCIDENTAL}
    kept = _with_class_names(kept)
    for section, incidental in _INCIDENTAL_IN.items():
        if section in kept:
            kept[section] = {key: value for key, value in kept[section].items() if key not in incidental}
    kept["data"] = _of_data(kept["data"])
    for key in ("checkpoint", "pretrained_file"):  # what a file holds counts, not where it lies
        if (path := kept["model"][key]) and Path(path).is_file():
            kept["model"] = {**kept["model"], key: _file_digest(path, Path(path).stat().st_mtime_ns)}
    if "strategy" not in kept:
        return kept
    if kept["pattern"] == str(UNSTRUCTURED):
        kept.pop("pattern")  # runs without one are what they were before there were any
    baseline = kept["criterion"]["name"] != NO_CRITERION
    if baseline:
        kept.pop("signal")  # the criterion scores
        kept["match"] = _matched(kept)
        if kept["match"]:
            kept.pop("budget")
    ranked = baseline or kept["allocation"]["name"] not in (STRATEGY, SEARCHED)
    if ranked and common_budget(kept.get("budget")):
        kept["ranges"] = {"grasp_temperature": kept["ranges"]["grasp_temperature"]}
        kept.pop("strategy")
    if kept["allocation"]["name"] == SEARCHED:
        kept.pop("strategy")  # the search takes its place
    return kept


def _with_class_names(settings: Any) -> Any:
    """Return settings in which a ``_target_`` of this project is the class's name, wherever its module lies.

    A file that moves changes no hash. Classes of others, and of users, keep their whole address.
    """
    if isinstance(settings, dict):
        return {
            key: _class_name(value) if key == "_target_" else _with_class_names(value)
            for key, value in settings.items()
        }
    return [_with_class_names(value) for value in settings] if isinstance(settings, list) else settings


def _class_name(target: Any) -> Any:
    ours = str(target).startswith(("mmp.", "callbacks."))
    return str(target).rpartition(".")[2] if ours else target


def common_budget(budget: Any) -> bool:
    """Return whether a budget, in any of its forms, is the same for all strategies."""
    if budget is None or isinstance(budget, int | float | str):
        return budget is not None
    asks = budget.get if hasattr(budget, "get") else lambda key: getattr(budget, key)
    return not asks("strategies") and (asks("sparsity") is not None or asks("megabytes") is not None)


def label(cfg: Any) -> str:
    """Return what decides each layer's sparsity, as names and reports show it: ``p70``, ``searched``, ``lamp at p70``.

    Args:
        cfg: A configuration of ``prune.py``, validated or not.
    """
    name = cfg.allocation.name
    if name == STRATEGY:
        return str(cfg.strategy.name)
    return name if name == SEARCHED or common_budget(cfg.budget) else f"{name} at {cfg.strategy.name}"


def protocol_of(settings: dict[str, Any]) -> str:
    """Return a hash of how a run was masked, trained and re-solved: only runs that have it in common are compared.

    Args:
        settings: What `identity` returned.
    """
    keys = ("dense", "schedule", "pattern", "reconstruct", "finetune", "trainer", "callbacks", "data")
    return digest({key: settings[key] for key in keys if key in settings})[:16]


def configuration_of(settings: dict[str, Any]) -> str:
    """Return a hash of all settings but the seed and what depends on it: runs that share it are repetitions.

    Args:
        settings: What `identity` returned.
    """
    model = {key: value for key, value in settings["model"].items() if key != "checkpoint"}
    kept = {key: value for key, value in settings.items() if key not in ("seed", "match")}
    return digest({**kept, "model": model})[:16]


def _of_data(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what counts of a data set: without batches or a copy in memory, runs are what they were before those."""
    in_batches = settings.get("augment") is not None and settings.get("augment_batches")
    absent = {"augment_batches": not in_batches, "in_memory": not settings.get("in_memory")}
    return {key: value for key, value in settings.items() if not absent.get(key)}


def _matched(settings: dict[str, Any]) -> Any:
    """Return the number of weights that a matched sweep prescribes: it counts, not where the sweep lies."""
    folder, model, data = settings["match"], settings["model"], settings["data"]
    try:
        name = model["label"] or model["name"]
        return folder and matched_weights(
            Path(folder),
            name,
            data["name"],
            settings["ranges"]["name"],
            settings["strategy"]["name"],
            settings["seed"],
            settings.get("pattern"),
        )
    except MmpError:  # told where the run begins
        return folder


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


@lru_cache
def _file_digest(path: str, _changed: int) -> str:
    return file_digest(Path(path))


def digest(content: Any) -> str:
    """Return a SHA-256 of plain data, the same for the same content whatever the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def run_title(cfg: Any) -> str:
    """Return how a dashboard shows a run: ``magnitude/p50/s0``; of a baseline ``lamp/p50/s0`` or ``lamp/0.9/s0``.

    A pattern is named in it: ``magnitude/p50/2:4/s0``.
    """
    if "strategy" not in cfg:
        return f"dense/{cfg.model.label or cfg.model.name}/s{cfg.seed}"
    end = "" if cfg.pattern == str(UNSTRUCTURED) else f"/{cfg.pattern}"
    end += f"/s{cfg.seed}"
    if cfg.criterion.name == NO_CRITERION:
        return f"{cfg.signal.name}/{label(cfg)}{end}"
    budget = cfg.budget
    if OmegaConf.is_dict(budget):
        budget = budget.get("sparsity") if budget.get("megabytes") is None else f"{budget.megabytes:g}MB"
    at = budget if common_budget(cfg.budget) else label(cfg)
    return f"{cfg.criterion.name}/{at}{end}"


def run_name(cfg: Any) -> str:
    """Return the folder name of a run: readable parts, then eight digits of the hash of its settings."""
    parts = [cfg.model.label or cfg.model.name, cfg.data.name]
    if "strategy" in cfg:
        baseline = cfg.criterion.name != NO_CRITERION
        parts += [cfg.criterion.name] if baseline else [cfg.signal.name]
        parts += [] if baseline and common_budget(cfg.budget) else [label(cfg).replace(" ", "-")]
        parts += [] if cfg.pattern == str(UNSTRUCTURED) else [cfg.pattern.replace(":", "of")]  # a colon is no file name
    return "-".join([*parts, f"s{cfg.seed}", digest(identity(cfg))[:8]])
