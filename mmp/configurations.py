"""Configurations: the runs of a folder by model and data set, then by what they differ in besides the seed.

Efficient configurations are chosen on validation accuracy; test accuracy is shown and never chosen by.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from mmp.results import SETTINGS, Run


@dataclass(frozen=True)
class Configuration:
    """One configuration and its runs, one per seed.

    Attributes:
        runs: Completed runs by rising seed.
        efficient: Whether no other configuration of its group is at least as sparse and loses as little on
            validation, and is better in one of the two.
        twins: Other configurations that gave the very same masks, for every seed.
    """

    runs: tuple[Run, ...]
    efficient: bool = False
    twins: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Signal and strategy, or criterion and budget."""
        return self.runs[0].configuration

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len({run.seed for run in self.runs})

    def mean(self, what: str) -> float:
        """Return the mean over seeds of an attribute of its runs."""
        return statistics.fmean(getattr(run, what) for run in self.runs)

    def spread(self, what: str = "drop") -> float | None:
        """Return the standard deviation over seeds of an attribute of its runs; None for a single run."""
        return statistics.stdev(getattr(run, what) for run in self.runs) if len(self.runs) > 1 else None

    @property
    def validation_drop(self) -> float:
        """Points of validation accuracy lost against the dense model of the same seed, mean over seeds."""
        return 100 * statistics.fmean(run.dense_validation - run.validation for run in self.runs)


@dataclass
class Group:
    """The completed runs of one model on one data set.

    Attributes:
        model: Name of the model.
        data: Name of the data set.
        runs: Completed runs.
        configurations: The same, by configuration, by rising sparsity.
        seeds: Number of seeds.
    """

    model: str
    data: str
    runs: list[Run]
    configurations: list[Configuration] = field(init=False)
    seeds: int = field(init=False)

    def __post_init__(self) -> None:
        self.runs = sorted(self.runs, key=lambda run: (run.sparsity, run.configuration, run.seed, run.folder))
        self.seeds = len({run.seed for run in self.runs})
        by_settings: dict[tuple[str, ...], list[Run]] = defaultdict(list)
        for run in self.runs:
            by_settings[run.configuration, *(getattr(run, what) for what in SETTINGS), run.settings].append(run)
        found = [Configuration(tuple(sorted(runs, key=lambda run: run.seed))) for runs in by_settings.values()]
        found.sort(key=lambda one: (one.mean("sparsity"), one.name))
        efficient = pareto_front([(one.mean("sparsity"), -one.validation_drop) for one in found])
        twins = _twins(found)
        self.configurations = [
            replace(one, efficient=good, twins=same) for one, good, same in zip(found, efficient, twins, strict=True)
        ]

    @property
    def title(self) -> str:
        """Model and data set."""
        return f"{self.model} on {self.data}"

    def noise(self, split: str) -> float:
        """Return the binomial standard error sqrt(p (1 - p) / n) of the dense model's accuracy, a fraction."""
        run = self.runs[0]
        p, n = (run.dense_test, run.test_samples) if split == "test" else (run.dense_validation, run.validation_samples)
        return (p * (1 - p) / n) ** 0.5 if n else 0.0

    def spreads(self) -> list[float]:
        """Return each configuration's standard deviation of the drop over seeds, in points, by rising value."""
        return sorted(spread for one in self.configurations if (spread := one.spread()) is not None)

    def repeats(self) -> list[float]:
        """Return the ranges of test accuracy, in points, of runs that had the same masks, seed and training."""
        same = defaultdict(list)
        for run in self.runs:
            same[run.masks_hash, run.seed, run.protocol].append(100 * run.test)
        return [max(accuracies) - min(accuracies) for accuracies in same.values() if len(accuracies) > 1]

    def varies(self, what: str) -> bool:
        """Return whether an attribute differs between runs."""
        return len({getattr(run, what) for run in self.runs}) > 1


def groups_of(runs: Iterable[Run]) -> list[Group]:
    """Return the completed runs by model and data set."""
    grouped: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.status == "completed":
            grouped[run.model, run.data].append(run)
    return [Group(model, data, members) for (model, data), members in sorted(grouped.items())]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each point whether it is efficient: none is at least as high in both and higher in one.

    Equal points are efficient together. Takes O(n log n).
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    efficient = [False] * len(points)
    best = (float("-inf"), float("-inf"))  # (y, x) of the highest y so far, which came with the highest x
    for i in order:
        x, y = points[i]
        if y > best[0] or (y, x) == best:
            efficient[i], best = True, (y, x)
    return efficient


def _twins(configurations: Sequence[Configuration]) -> list[tuple[str, ...]]:
    def masks(one: Configuration) -> tuple[tuple[int, str], ...]:
        return tuple((run.seed, run.masks_hash) for run in one.runs)

    by_masks = defaultdict(list)
    for one in configurations:
        by_masks[masks(one)].append(one.name)
    return [tuple(sorted({*by_masks[masks(one)]} - {one.name})) for one in configurations]
