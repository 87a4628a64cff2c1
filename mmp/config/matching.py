"""Baselines beside a sweep: its axes, and the number of weights that each of its strategies prunes.

``python prune.py -m match=results/sweeps/demo`` runs every criterion at the sparsities of that sweep's strategies, for
its models, data sets and seeds; results go into the sweep's folder, so that one report shows both. Reads result files
alone and imports no torch, since it runs before a configuration is composed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmp.errors import MmpError

_KEY = "match="
# Axes that are not taken over.
_OURS = ("signal", "criterion", "allocation", "budget", "match", "sweep", "force", "hydra", "paths", "logger")


def sweep_folder(cfg: Any) -> str:
    """Return the folder that a multirun fills: that of the sweep to match, if there is one."""
    return cfg.match if cfg.get("match") else f"{cfg.paths.results}/sweeps/{cfg.sweep}"


def strategy_runs(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the ``result.json`` of every completed run of a strategy below a folder; not those that were searched.

    Raises:
        MmpError: if there is none.
    """
    found = False
    for path in sorted(folder.rglob("result.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(result, dict) or result.get("status") != "completed":
            continue
        if result.get("signal") and result.get("allocation", "strategy") == "strategy":
            found = True
            yield result
    if not found:
        raise MmpError(f"match={folder}: holds no completed run of a strategy; give the folder of a finished sweep")


def matched_weights(
    folder: Path, model: str, data: str, ranges: str, strategy: str, seed: int, pattern: str | None = None
) -> int:
    """Return how many weights a sweep's strategy prunes.

    Args:
        folder: The sweep's folder.
        model: Label of the model.
        data: Name of the data set.
        ranges: Name of the range table.
        strategy: Name of the strategy.
        seed: Seed of the run; observed ranges depend on it.
        pattern: Pattern of its masks, if there is one.

    Raises:
        MmpError: if the sweep has no such run, or several that differ; the message says what it has.
    """
    wanted = {"model": model, "data": data, "ranges": ranges, "strategy": strategy, "seed": seed}
    wanted |= {"pattern": pattern} if pattern else {}
    counts, others = set(), set()
    for result in strategy_runs(folder):
        found = {key: result[key] for key in wanted if key != "pattern"}
        found |= {"pattern": result["pattern"]} if result.get("pattern") else {}
        others.add(" ".join(f"{key}={value}" for key, value in found.items()))
        if found == wanted:
            counts.add(sum(layer["pruned"] for layer in result["layers"]))
    said = f"match={folder}: " + " ".join(f"{key}={value}" for key, value in wanted.items())
    if not counts:
        raise MmpError(f"{said} has no completed run there; there are: {'; '.join(sorted(others)[:20])}")
    if len(counts) > 1:
        raise MmpError(
            f"{said} was pruned to {len(counts)} different sparsities there; run baselines at those budgets instead: "
            "python prune.py -m 'criterion=glob(*,exclude=none)' budget=..."
        )
    return counts.pop()


def with_axes(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the axes of the sweep to match filled in, where it is a multirun that names one.

    Every override that the sweep's runs were made by becomes an axis, unless the command line sets it; the criterion
    runs over all of ``conf/criterion`` and the signal, which baselines do not use, over none.

    Args:
        arguments: The command line, without the program's name.

    Raises:
        MmpError: if it sets a budget, too.
    """
    folder = next((a.removeprefix(_KEY) for a in arguments if a.startswith(_KEY)), "")
    budget = next((a for a in arguments if key_of(a).split(".")[0] == "budget"), "")
    if folder and budget:
        raise MmpError(f"match={folder} and {budget} both say how sparse a baseline becomes; leave one of them out")
    if not folder or not {"-m", "--multirun"}.intersection(arguments):
        return list(arguments)
    given = {key_of(argument) for argument in arguments}
    axes: dict[str, set[str]] = {}
    for result in strategy_runs(Path(folder)):
        for override in result.get("overrides", ()):
            key = key_of(override)
            if key.split(".")[0].split("/")[0] not in _OURS and key not in given:
                axes.setdefault(override.partition("=")[0], set()).add(override.partition("=")[2])
        if "strategy" not in given:
            axes.setdefault("strategy", set()).add(result["strategy"])
    added = [f"{key}={','.join(sorted(values))}" for key, values in axes.items()]
    added += ["criterion=glob(*,exclude=none)"] if "criterion" not in given else []
    return [*arguments, *added, "signal=magnitude"]


def key_of(argument: str) -> str:
    """Return the key of an override, without Hydra's signs for adding and removing."""
    return argument.partition("=")[0].lstrip("+~")
