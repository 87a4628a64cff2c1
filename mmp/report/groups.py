"""Groups and configurations: runs by model and data set, then by all settings except the seed.

Runs that prune whole channels are a group of their own. A removed parameter saves memory and time, and a pruned weight
is zero, so equal shares of the two are not the same.

Pareto-efficient configurations are chosen by validation accuracy. Test accuracy is reported and never used to choose.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from mmp.config.matching import key_of
from mmp.report.results import SETTINGS, Run

# Overrides that a configuration's name contains anyway, or that do not change its result.
_NAMED = {"model", "data", "signal", "strategy", "criterion", "seed", "match", "sweep", "force", *SETTINGS}
_INCIDENTAL = ("paths", "logger", "hydra", "debug")
_MOST_TWINS = 8  # names in a list


@dataclass(frozen=True)
class Configuration:
    """One configuration and its runs, one per seed.

    Attributes:
        runs: Completed runs by rising seed.
        other: Overrides, or a hash of all settings, that distinguish it from configurations with the same name and the
            same `SETTINGS`.
        varied: The `SETTINGS` that vary within its group.
        efficient: Whether it is Pareto-efficient among the configurations of its group with the most seeds: no other
            has at least its :attr:`Run.reduction` and at most its validation drop, and is better in one of the two.
        twins: Names of other configurations with identical masks for every seed.
    """

    runs: tuple[Run, ...]
    other: str = ""
    varied: tuple[str, ...] = ()
    efficient: bool = False
    twins: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Signal and strategy (of a baseline, see :class:`Run`), then the settings that vary within its group."""
        settings = (f"{what}={value}" for what in self.varied if (value := getattr(self.runs[0], what)))
        return " ".join(filter(None, (self.runs[0].configuration, *settings, self.other)))

    @property
    def named_twins(self) -> list[str]:
        """The names of at most eight twins, then the number of the remaining ones."""
        more = len(self.twins) - _MOST_TWINS
        return [*self.twins[:_MOST_TWINS], *([f"and {more} more"] if more > 0 else [])]

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len({run.seed for run in self.runs})

    def mean(self, what: str) -> float:
        """Return the mean over seeds of an attribute of the runs."""
        return statistics.fmean(getattr(run, what) for run in self.runs)

    def known_mean(self, what: str) -> float | None:
        """Return the mean over the seeds that have an attribute; None if none has it."""
        values = [value for run in self.runs if (value := getattr(run, what)) is not None]
        return statistics.fmean(values) if values else None

    def spread(self, what: str = "drop") -> float | None:
        """Return the standard deviation over seeds of an attribute of the runs; None for a single run."""
        return statistics.stdev(getattr(run, what) for run in self.runs) if len(self.runs) > 1 else None

    @property
    def validation_drop(self) -> float:
        """Validation accuracy lost against the dense model of the same seed, in points, mean over seeds."""
        return 100 * statistics.fmean(run.dense_validation - run.validation for run in self.runs)


@dataclass
class Group:
    """The completed runs of one model on one data set, with whole channels or without.

    Attributes:
        model: Name of the model.
        data: Name of the data set.
        runs: Completed runs.
        configurations: The same runs by configuration, sorted by :attr:`Run.reduction`.
        seeds: Number of seeds.
    """

    model: str
    data: str
    runs: list[Run]
    configurations: list[Configuration] = field(init=False)
    seeds: int = field(init=False)

    def __post_init__(self) -> None:
        self.runs = sorted(self.runs, key=lambda run: (run.reduction, run.configuration, run.seed, run.folder))
        self.seeds = len({run.seed for run in self.runs})
        by_name: dict[tuple[str, ...], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
        for run in self.runs:
            by_name[run.configuration, *(getattr(run, what) for what in SETTINGS)][run.settings].append(run)
        varied = tuple(what for what in SETTINGS if self.varies(what))
        found = [
            Configuration(tuple(sorted(runs, key=lambda run: run.seed)), other, varied)
            for namesakes in by_name.values()
            for runs, other in zip(namesakes.values(), _distinctions(list(namesakes.values())), strict=True)
        ]
        found.sort(key=lambda one: (one.mean("reduction"), one.name))
        self.configurations = [
            replace(one, efficient=efficient, twins=twins)
            for one, efficient, twins in zip(found, _efficient(found), _twins(found), strict=True)
        ]

    @property
    def title(self) -> str:
        """Model and data set, and whether whole channels are pruned."""
        return f"{self.model} on {self.data}{', whole channels' if self.whole_channels else ''}"

    @property
    def whole_channels(self) -> bool:
        """Whether the runs prune whole channels."""
        return self.runs[0].whole_channels

    def dense(self, split: str) -> list[float]:
        """Return the accuracies of the dense models on ``validation`` or ``test``, one per seed, as fractions."""
        return list({run.seed: getattr(run, f"dense_{split}") for run in self.runs}.values())

    def noise(self, split: str) -> float:
        """Return the binomial standard error sqrt(p (1 - p) / n) of a dense model's accuracy, as a fraction."""
        p, n = statistics.fmean(self.dense(split)), getattr(self.runs[0], f"{split}_samples")
        return (p * (1 - p) / n) ** 0.5 if n else 0.0

    def spreads(self) -> list[float]:
        """Return the standard deviation over seeds of each configuration's drop, in points, sorted."""
        return sorted(spread for one in self.configurations if (spread := one.spread()) is not None)

    def repeats(self) -> list[float]:
        """Return the range of test accuracy, in points, of each set of runs with the same masks, seed and training."""
        same = defaultdict(list)
        for run in self.runs:
            same[run.masks_hash, run.seed, run.protocol].append(100 * run.test)
        return [max(accuracies) - min(accuracies) for accuracies in same.values() if len(accuracies) > 1]

    def varies(self, what: str) -> bool:
        """Return whether an attribute varies between the runs."""
        return len({getattr(run, what) for run in self.runs}) > 1


def groups_of(runs: Iterable[Run]) -> list[Group]:
    """Return the completed runs by model and data set; those with whole channels apart."""
    grouped: dict[tuple[str, str, bool], list[Run]] = defaultdict(list)
    for run in runs:
        if run.status == "completed":
            grouped[run.model, run.data, run.whole_channels].append(run)
    return [Group(model, data, members) for (model, data, _), members in sorted(grouped.items())]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each point whether it is Pareto-efficient: no other has at least its coordinates and one larger.

    Equal points are efficient together. Takes O(n log n).

    Args:
        points: Two coordinates each; both are better when larger.
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    efficient = [False] * len(points)
    best = (float("-inf"), float("-inf"))  # the largest y so far, and the x of its point
    for i in order:
        x, y = points[i]
        if y > best[0] or (y, x) == best:
            efficient[i], best = True, (y, x)
    return efficient


def _efficient(configurations: Sequence[Configuration]) -> list[bool]:
    """Mark the Pareto-efficient ones among those with the most seeds; rounded, because sums depend on their order."""
    most = max((one.seeds for one in configurations), default=0)
    complete = [one for one in configurations if one.seeds == most]
    points = [(round(one.mean("reduction"), 7), -round(one.validation_drop / 100, 7)) for one in complete]
    chosen = {id(one) for one, good in zip(complete, pareto_front(points), strict=True) if good}
    return [id(one) in chosen for one in configurations]


def _distinctions(namesakes: Sequence[Sequence[Run]]) -> list[str]:
    """Return for each configuration of one name the overrides that not all of them have.

    Where these do not distinguish them, a part of the hash of all settings is appended.
    """
    overrides = [{override for override in runs[0].overrides if _distinguishes(override)} for runs in namesakes]
    common = set.intersection(*overrides)
    words = [" ".join(sorted(own - common)) for own in overrides]
    if len(set(words)) == len(words):
        return words
    return [" ".join(filter(None, (own, runs[0].settings[:6]))) for own, runs in zip(words, namesakes, strict=True)]


def _distinguishes(override: str) -> bool:
    key = key_of(override)
    return key not in _NAMED and key.partition(".")[0] not in _INCIDENTAL


def _twins(configurations: Sequence[Configuration]) -> list[tuple[str, ...]]:
    def masks(one: Configuration) -> tuple[tuple[int, str], ...]:
        return tuple((run.seed, run.masks_hash) for run in one.runs)

    by_masks = defaultdict(list)
    for one in configurations:
        by_masks[masks(one)].append(one.name)
    return [tuple(sorted({*by_masks[masks(one)]} - {one.name})) for one in configurations]
