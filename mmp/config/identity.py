"""Identity of a run: the settings that decide its numbers, their hash, and the name made of both.

Two runs with the same identity compute the same model, so a run whose folder holds a result of the same identity is
skipped. The functions here take plain data: :func:`settings_of` makes it from a configuration.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmp.config.home import with_home
from mmp.config.matching import StrategyRun, matched_weights
from mmp.config.schema import JOINT, NO_CRITERION, NO_NETWORK, SEARCHED, STRATEGY, ModelConfig, TrainConfig
from mmp.config.source_code import source_digest
from mmp.errors import MmpError
from mmp.files import Stamp, file_digest, stamp_of
from mmp.pruning.patterns import UNSTRUCTURED, parse

Settings = dict[str, Any]

OF_DENSE = ("model", "data", "dense", "trainer", "seed")  # the settings that decide a dense model

# Sections and keys that change no number.
_INCIDENTAL = {"paths", "logger", "sweep", "force", "hydra"}
_INCIDENTAL_IN = {
    "trainer": {"enable_progress_bar", "log_every_n_steps"},
    "data": {"download", "workers", "eval_batch_size", "dense_epochs", "finetune_epochs"},
    "callbacks": {"progress"},
    "reconstruct": {"cache_megabytes"},
}


def settings_of(cfg: DictConfig | TrainConfig) -> Settings:
    """Return a configuration as plain data, without the sections that change no number, its pattern in one spelling.

    Args:
        cfg: A configuration that Hydra composed, or a validated one. Interpolations are resolved.

    Raises:
        MissingMandatoryValue: if a key has no value (OmegaConf's ``???``).
    """
    if isinstance(cfg, DictConfig):
        settings = with_home({str(key): _plain(cfg[key]) for key in cfg if key not in _INCIDENTAL})
    else:
        settings = {key: value for key, value in asdict(cfg).items() if key not in _INCIDENTAL}
    return settings | ({"pattern": _one_spelling(settings["pattern"])} if "pattern" in settings else {})


def _one_spelling(pattern: Any) -> Any:
    """Return a pattern in its own spelling: ``channels:16`` is ``channels``."""
    try:
        return str(parse(pattern))
    except (MmpError, TypeError):  # validation names the mistake
        return pattern


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node


def identity(settings: Settings) -> Settings:
    """Return the part of a configuration that decides a run's numbers.

    Keys that have no effect are left out. So are keys that did not exist in earlier versions, as long as they have
    their default value: hashes of older runs stay valid.

    Args:
        settings: The configuration, from :func:`settings_of`.
    """
    kept = with_sources(settings)
    for section, incidental in _INCIDENTAL_IN.items():
        if section in kept:
            kept[section] = {key: value for key, value in kept[section].items() if key not in incidental}
    if not kept["trainer"].get("compile"):
        kept["trainer"].pop("compile", None)  # added later
    kept["data"] = _data_identity(kept["data"])
    kept["model"] = _model_identity(kept["model"])
    return _pruning_identity(kept) if "strategy" in kept else kept


def with_sources(settings: Any) -> Any:
    """Return settings in which every ``_target_`` stands for the code behind it.

    A ``_target_`` of this project becomes the name of the class, so that a class that moves to another module changes
    no hash. A user's class keeps its address and gets a hash of its source, so that an edit of it, or of a module that
    it imports, makes other settings.
    """
    if isinstance(settings, list):
        return [with_sources(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    described = {key: with_sources(value) for key, value in settings.items()}
    if settings.get("_target_") is not None:
        address = str(settings["_target_"])
        source = source_digest(address)
        described |= {"_target_": _class_name(address)} | ({"_source_": source[:16]} if source else {})
    return described


def _class_name(address: str) -> str:
    return address.rpartition(".")[2] if address.startswith(("mmp.", "callbacks.")) else address


def architecture(model: ModelConfig) -> Settings:
    """Return what decides a network, apart from its weights: its name or the code of its class, and its arguments."""
    keys = ("name", "_target_", "num_classes", "in_chans", "kwargs")
    described: Settings = with_sources({key: getattr(model, key) for key in keys})
    return described


def _data_identity(data: Settings) -> Settings:
    """Return the data settings that are part of a run's identity.

    Keys added later are left out while they have no effect, so that older hashes stay valid.
    """
    in_batches = data.get("augment") is not None and data.get("augment_batches")
    unused = {
        "augment_batches": not in_batches,
        "in_memory": not data.get("in_memory"),
        "background": data.get("background") == "white",
    }
    return {key: value for key, value in data.items() if not unused.get(key)}


def _model_identity(model: Settings) -> Settings:
    """Return the model settings with the digests of its weight files in place of their paths.

    Keys added later are left out while they are null, so that older hashes stay valid.
    """
    files = {key: Path(model[key]) for key in ("checkpoint", "pretrained_file") if model[key]}
    later = ("weights_key", "mean", "std", "_target_")
    kept = {key: value for key, value in model.items() if key not in later or value is not None}
    return kept | {key: _file_digest(path, stamp_of(path)) for key, path in files.items() if path.is_file()}


def _reconstruction(kept: Settings) -> Settings:
    """Return the settings of a reconstruction without those that have no effect."""
    if kept.get("name") == JOINT:
        tuning = {key: value for key, value in kept["tuning"].items() if key != "compile" or value}  # added later
        return {**kept, "tuning": tuning}
    unused = {"tuning"}
    if kept.get("name") == "none" or not kept.get("rows_per_column"):
        unused.add("rows_per_column")  # so that hashes from before it existed stay valid
    return {key: value for key, value in kept.items() if key not in unused}


def _pruning_identity(settings: Settings) -> Settings:
    """Return the settings of ``mmp-prune`` without those that others override."""
    kept = dict(settings)
    if kept["pattern"] == str(UNSTRUCTURED):
        del kept["pattern"]  # so that hashes from before patterns existed stay valid
    if isinstance(kept["budget"], dict) and kept["budget"].get("macs") is None:
        kept["budget"] = {key: value for key, value in kept["budget"].items() if key != "macs"}
    kept["reconstruct"] = _reconstruction(kept["reconstruct"])
    baseline = _is_baseline(kept)
    if baseline:
        del kept["signal"]  # the criterion scores the weights
        kept["match"] = _match_identity(kept)
        if kept["match"]:
            kept.pop("budget")
    allocation = kept["allocation"]["name"]
    ranked = baseline or allocation not in (STRATEGY, SEARCHED)
    if ranked and common_budget(kept.get("budget")):  # the ranking alone decides every layer's sparsity
        kept["ranges"] = {"grasp_temperature": kept["ranges"]["grasp_temperature"]}
        del kept["strategy"]
    if allocation == SEARCHED:
        kept.pop("strategy", None)  # the search takes its place
    return kept


def _is_baseline(settings: Settings) -> bool:
    return settings["criterion"]["name"] != NO_CRITERION


def _match_identity(settings: Settings) -> Any:
    """Return how many weights the matched sweep prunes; this number is part of the identity, not the sweep's path."""
    run = StrategyRun(
        model=_title(settings),
        data=settings["data"]["name"],
        ranges=settings["ranges"]["name"],
        strategy=settings["strategy"]["name"],
        seed=settings["seed"],
        pattern=settings.get("pattern"),
    )
    folder = settings["match"]
    try:
        return folder and matched_weights(Path(folder), run)
    except MmpError:  # raised again, and reported, when the run starts
        return folder


def _title(settings: Settings) -> str:
    stated = {key: value for key, value in settings["model"].items() if key != "_source_"}
    if title := ModelConfig(**stated).title:
        return title
    raise MmpError(NO_NETWORK)


@lru_cache
def _file_digest(path: Path, _stamp: Stamp) -> str:
    return file_digest(path)


def digest(content: Any) -> str:
    """Return the SHA-256 of plain data. The order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def protocol_of(decisive: Settings) -> str:
    """Return a hash of how a run was masked, re-solved and trained. Only runs with the same protocol are compared.

    Args:
        decisive: What :func:`identity` returned.
    """
    keys = ("dense", "schedule", "pattern", "reconstruct", "finetune", "trainer", "callbacks", "data")
    return digest({key: decisive[key] for key in keys if key in decisive})[:16]


def configuration_of(decisive: Settings) -> str:
    """Return a hash of everything but the seed and its consequences. Runs with the same hash are repetitions.

    Args:
        decisive: What :func:`identity` returned.
    """
    model = {key: value for key, value in decisive["model"].items() if key != "checkpoint"}
    kept = {key: value for key, value in decisive.items() if key not in ("seed", "match")}
    return digest({**kept, "model": model})[:16]


def common_budget(budget: Any) -> bool:
    """Return whether a budget is the same for all strategies.

    Args:
        budget: None, a global sparsity, or the keys of :class:`mmp.config.schema.BudgetConfig`.
    """
    if not isinstance(budget, dict):
        return budget is not None
    return not budget.get("strategies") and any(
        budget.get(key) is not None for key in ("sparsity", "megabytes", "macs")
    )


def label(settings: Settings) -> str:
    """Return the name of the rule for each layer's sparsity: ``p70``, ``searched`` or ``lamp at p70``.

    Args:
        settings: A configuration of ``mmp-prune``, from :func:`settings_of`.
    """
    allocation, strategy = settings["allocation"]["name"], settings["strategy"]["name"]
    if allocation == STRATEGY:
        return str(strategy)
    if allocation == SEARCHED or common_budget(settings["budget"]):
        return str(allocation)
    return f"{allocation} at {strategy}"


def run_title(cfg: DictConfig) -> str:
    """Return the name of a run in a dashboard.

    Examples: ``magnitude/p50/s0``, ``magnitude/p50/2:4/s0`` with a pattern, ``dense/cnn/s0`` of a dense model; of a
    baseline ``lamp/p50/s0``, or ``lamp/0.9/s0`` with a budget.

    Args:
        cfg: A configuration that Hydra composed.
    """
    settings = settings_of(cfg)
    if "strategy" not in settings:
        return f"dense/{_title(settings)}/s{settings['seed']}"
    budget = settings["budget"]
    if not _is_baseline(settings):
        parts = [settings["signal"]["name"], label(settings)]
    elif not common_budget(budget):
        parts = [settings["criterion"]["name"], label(settings)]
    else:
        parts = [settings["criterion"]["name"], _budget_title(budget)]
    parts += [] if settings["pattern"] == str(UNSTRUCTURED) else [settings["pattern"]]
    return "/".join([*parts, f"s{settings['seed']}"])


def _budget_title(budget: Any) -> str:
    if not isinstance(budget, dict):
        return str(budget)
    return str(budget["sparsity"]) if budget.get("megabytes") is None else f"{budget['megabytes']:g}MB"


def run_name(cfg: DictConfig) -> str:
    """Return the name of a run's folder: readable parts, then the first eight digits of the hash of its identity.

    Args:
        cfg: A configuration that Hydra composed.
    """
    settings = settings_of(cfg)
    parts = [_title(settings), settings["data"]["name"]]
    if "strategy" in settings:
        baseline = _is_baseline(settings)
        parts.append(settings["criterion" if baseline else "signal"]["name"])
        if not (baseline and common_budget(settings["budget"])):
            parts.append(label(settings).replace(" ", "-"))
        if settings["pattern"] != str(UNSTRUCTURED):
            parts.append(settings["pattern"].replace(":", "of"))  # some file systems allow no colon in a name
    return "-".join([*parts, f"s{settings['seed']}", digest(identity(settings))[:8]])
