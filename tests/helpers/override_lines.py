"""Random override lines of ``mmp-prune``, made from its configuration: every key, with right, wrong and odd values."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from composing import composed
from hypothesis import strategies as st
from omegaconf import OmegaConf
from places import CONF

# Keys whose values would download, or write to another place than the test's folder.
_UNSAFE = ("paths", "model.pretrained", "data.download")
# Choices that are quick to try. `data` is not read by the check of a job.
_CHOICES = {"model": ["cnn", "vit", "levit", "timm"], "debug": ["fast"]}
_SKIPPED_GROUPS = {"hydra", "paths", "experiment", "data"}

NUMBERS = ["-1", "0", "1", "2", "3", "10", "64", "4294967296", "18446744073709551616", "1000000000", "'.nan'"]
NUMBERS += ["-0.5", "0.0", "0.3", "0.5", "0.99", "1.0", "1.5", "1e308", "1e-308", "nan", "inf", "-inf"]
WORDS = ["null", "true", "false", "''", "nonsense", "'a b'", "ü", "'???'", "'${seed}'", "'${nope}'", "'${'", "a/b", "="]
WORDS += ["none", "0x10", "'1'", "'", "builtins.dict", "mmp.pruning.signals.Magnitude", "math.pi", "1,2", "glob(*)"]
LISTS = ["[]", "[0]", "[1,2]", "[1,2,0,0]", "[0.2,0.8]", "[nan]", "[a]", "[[1]]", "[null]", "[-1,5]", "[1", "[0.9,0.1]"]
MAPPINGS = ["{}", "{a: 1}", "{name: x}", "{_target_: builtins.dict}", "{sparsity: 0.5}", "{0: 1}", "{a: {b: [1]}}"]
CHANNELS = ["channels", "channels:4", "channels:0", "channels:1.5"]
# Values with a meaning for keys of these names.
KNOWN = {
    "optimizer": ["adamw", "sgd", "adahessian", "fusedadam", "bnbadam", "lamb", "lion", "lookahead_adamw", "muon"],
    "scheduler": ["cosine", "step", "multistep", "poly", "tanh", "plateau", "none"],
    "precision": ["32-true", "bf16-true", "16-true", "64", "16-mixed", "bf16-mixed", "transformer-engine", "bf17"],
    "accelerator": ["auto", "cpu", "gpu", "mps", "tpu", "cuda"],
    "monitor": ["val/accuracy", "val/loss", "train/loss", "val/acc", "sparsity", "epoch"],
    "mode": ["min", "max", "auto"],
    "pattern": ["2:4", "4:8", "4x1", "1x4", "0:4", "5:4", "4:4", "-1x2", "999x999", "2:4:8", *CHANNELS],
    "name": ["strategy", "searched", "lamp", "mag", "resnet18", "convnext_atto", "hf-hub:a/b", "least_squares"],
    "image_size": ["1", "8", "16", "17", "32", "1000000000"],
    "source": ["rules", "observed"],
}  # fmt: skip


def lines() -> st.SearchStrategy[list[str]]:
    """Return a strategy of lines of one to four overrides."""
    override = st.one_of(_of_keys(), _of_keys(), _of_keys(), _of_groups(), _removals(), _additions())
    some = st.lists(override, min_size=1, max_size=4)
    return st.one_of(some, some, some, st.tuples(_channels(), some).map(lambda parts: [*parts[0], *parts[1]]))


def _channels() -> st.SearchStrategy[list[str]]:
    """Return a strategy of lines that prune whole channels, with the ranges for them or others, and with a budget."""
    pattern = st.sampled_from(["pattern=channels", "pattern=channels:4", "pattern=channels:1"])
    ranges = st.sampled_from(["ranges=channels", "ranges=channels", "ranges=generic"])
    budgets = ["budget=null", "budget=0.5", "budget=0.97", "++budget.macs=0.5", "++budget={macs: 0.01}"]
    return st.tuples(pattern, ranges, st.sampled_from(budgets)).map(list)


@functools.cache
def keys() -> list[str]:
    """Return every key of ``mmp-prune``, with the sections that contain others."""
    choices = [
        "finetune=strong",
        "schedule=cubic",
        "budget={sparsity: 0.8, megabytes: null, strategies: {}, macs: null}",
    ]
    found = dict.fromkeys(_walk(OmegaConf.to_container(composed(*choices), resolve=False)))
    found |= dict.fromkeys(_walk(OmegaConf.to_container(composed(), resolve=False)))
    return [key for key in found if not key.startswith(_UNSAFE)]


def _walk(node: Any, above: str = "") -> Iterator[str]:
    for name, value in node.items():
        key = f"{above}.{name}" if above else str(name)
        yield key
        if isinstance(value, dict):
            yield from _walk(value, key)


def _values(key: str) -> st.SearchStrategy[str]:
    odd = [st.sampled_from(pool) for pool in (NUMBERS, NUMBERS, WORDS, LISTS, MAPPINGS)]
    known = KNOWN.get(key.rpartition(".")[2])
    return st.one_of(*odd, *[st.sampled_from(known)] * 4) if known else st.one_of(*odd)


def _of_keys() -> st.SearchStrategy[str]:
    return st.sampled_from(keys()).flatmap(lambda key: _values(key).map(lambda value: f"{key}={value}"))


def _removals() -> st.SearchStrategy[str]:
    return st.sampled_from(keys()).map(lambda key: f"~{key}")


def _additions() -> st.SearchStrategy[str]:
    places = ["model.kwargs.drop_rate", "model.kwargs.features_only", "model.kwargs.global_pool", "model.kwargs.nope"]
    places += ["model.kwargs.num_classes", "callbacks.early_stopping.min_delta", "callbacks.best.save_top_k"]
    places += ["callbacks.more", "callbacks.more._target_", "logger.more", "logger.more._target_", "schedule.nope"]
    places += ["criterion._target_", "budget.strategies.p50", "strategy.groups.conv", "nope", "finetune.nope"]
    return st.sampled_from(places).flatmap(lambda key: _values(key).map(lambda value: f"++{key}={value}"))


def _of_groups() -> st.SearchStrategy[str]:
    groups = [path.name for path in sorted(CONF.iterdir()) if path.is_dir() and path.name not in _SKIPPED_GROUPS]
    return st.sampled_from(groups).flatmap(
        lambda group: st.sampled_from([*_CHOICES.get(group, _files(CONF / group)), "nope", "null"]).map(
            lambda choice: f"{group}={choice}"
        )
    )


def _files(folder: Path) -> list[str]:
    return [path.stem for path in sorted(folder.glob("*.yaml"))]
