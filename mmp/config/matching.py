"""Baselines matched to a sweep: the sweep's axes, and how many weights each of its strategies prunes.

``mmp-prune -m match=results/sweeps/demo`` runs every criterion at the sparsities of that sweep's strategies, for
its models, data sets and seeds. The results go into the sweep's folder, so one report shows both. This module reads
only result files and does not import torch: it runs before Hydra composes a configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmp.config.home import expand_home
from mmp.errors import MmpError
from mmp.files import read_json

_KEY = "match="
_MOST_LISTED = 20  # runs in an error message

# Overrides of the sweep that do not become axes of its baselines.
_NOT_AXES = ("signal", "criterion", "allocation", "budget", "match", "sweep", "force", "hydra", "paths", "logger")


@dataclass(frozen=True)
class StrategyRun:
    """The names that identify a run of a strategy in a sweep.

    Attributes:
        model: Title of the model (:attr:`mmp.config.schema.ModelConfig.title`).
        data: Name of the data set.
        ranges: Name of the range table.
        strategy: Name of the strategy.
        seed: Seed of the run; observed ranges depend on it.
        pattern: Pattern of the masks; None for unstructured masks.
    """

    model: str
    data: str
    ranges: str
    strategy: str
    seed: int
    pattern: str | None = None

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> StrategyRun:
        """Return the names in a run's ``result.json``."""
        names = {key: result[key] for key in ("model", "data", "ranges", "strategy", "seed")}
        return cls(**names, pattern=result.get("pattern") or None)

    def __str__(self) -> str:
        """Return the names as they appear on a command line: ``model=cnn data=digits ...``."""
        return " ".join(f"{key}={value}" for key, value in asdict(self).items() if value is not None)


def sweep_folder(cfg: Any) -> str:
    """Return the folder of a multirun: the folder of the sweep to match, if there is one."""
    return expand_home(cfg.match if cfg.get("match") else f"{cfg.paths.results}/sweeps/{cfg.sweep}")


def strategy_results(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the ``result.json`` of every completed run of a strategy below a folder; searched runs are left out.

    Raises:
        MmpError: if there is none.
    """
    found = False
    for path in sorted(folder.rglob("result.json")):
        result = read_json(path)
        if result is None or result.get("status") != "completed":
            continue
        if result.get("signal") and result.get("allocation", "strategy") == "strategy":
            found = True
            yield result
    if not found:
        raise MmpError(f"match={folder}: holds no completed run of a strategy; give the folder of a finished sweep")


def matched_weights(folder: Path, run: StrategyRun) -> int:
    """Return how many weights a strategy of a sweep prunes.

    Args:
        folder: The sweep's folder.
        run: The names of a run in it.

    Raises:
        MmpError: if the sweep has no such run, or several that differ; the message lists the runs it has.
    """
    counts, others = set(), set()
    for result in strategy_results(folder):
        other = StrategyRun.of(result)
        others.add(str(other))
        if other == run:
            counts.add(sum(layer["pruned"] for layer in result["layers"]))
    if not counts:
        listed = "; ".join(sorted(others)[:_MOST_LISTED])
        raise MmpError(f"match={folder}: {run} has no completed run there; there are: {listed}")
    if len(counts) > 1:
        raise MmpError(
            f"match={folder}: {run} was pruned to {len(counts)} different sparsities there; run baselines at those "
            "budgets instead: mmp-prune -m 'criterion=glob(*,exclude=none)' budget=..."
        )
    return counts.pop()


def with_axes(arguments: Sequence[str]) -> list[str]:
    """Return a command line completed with the axes of the sweep to match, if it is a multirun that names one.

    Every override of the sweep's runs becomes an axis, unless the command line sets it. Without a ``criterion`` on the
    command line, all of ``conf/criterion`` run. Baselines use no signal, so ``signal`` gets a single value.

    Args:
        arguments: The command line, without the program's name.

    Raises:
        MmpError: if it also sets a budget.
    """
    folder = next((a.removeprefix(_KEY) for a in arguments if a.startswith(_KEY)), "")
    budget = next((a for a in arguments if key_of(a).split(".")[0] == "budget"), "")
    if folder and budget:
        raise MmpError(f"match={folder} and {budget} both set the sparsity of a baseline; leave one of them out")
    if not folder or not {"-m", "--multirun"}.intersection(arguments):
        return list(arguments)
    given = {key_of(argument) for argument in arguments}
    axes: dict[str, set[str]] = {}
    for result in strategy_results(Path(folder)):
        for override in result.get("overrides", ()):
            key = key_of(override)
            if key.split(".")[0].split("/")[0] not in _NOT_AXES and key not in given:
                axes.setdefault(override.partition("=")[0], set()).add(override.partition("=")[2])
        if "strategy" not in given:
            axes.setdefault("strategy", set()).add(result["strategy"])
    added = [f"{key}={','.join(sorted(values))}" for key, values in axes.items()]
    added += ["criterion=glob(*,exclude=none)"] if "criterion" not in given else []
    # Overrides must not be separated by an option: argparse would refuse `match=... -m criterion=...`.
    end = 1 + max(i for i, argument in enumerate(arguments) if "=" in argument and not argument.startswith("-"))
    return [*arguments[:end], *added, "signal=magnitude", *arguments[end:]]


def key_of(override: str) -> str:
    """Return the key of an override without Hydra's signs for adding and removing: ``seed`` of ``+seed=1``."""
    return override.partition("=")[0].lstrip("+~")
