"""Comparisons of two sweeps: each configuration of one against the same of the other, paired by seed."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmp.report.groups import Group
from mmp.report.results import SETTINGS, Run
from mmp.report.verdict import difference, outcome, paired

_EQUAL = 1e-3  # sparsities that differ by less are compared


@dataclass(frozen=True)
class Comparison:
    """One configuration in two sweeps, A and B. Sparsities are fractions; ``better`` and ``noise`` are in points.

    Attributes:
        name: Of the configuration.
        pairs: Its runs in A and B, one pair per seed.
        better: By how much less B loses of test accuracy than A, mean over seeds.
        noise: Half the 95 % confidence interval of ``better``.
    """

    name: str
    pairs: tuple[tuple[Run, Run], ...]
    better: float
    noise: float

    @property
    def obstacle(self) -> str:
        """Why there is no verdict; "" if there is one."""
        if any(a.dense_test != b.dense_test for a, b in self.pairs):
            return "other dense model"
        return "not equally sparse" if any(abs(a.sparsity - b.sparsity) >= _EQUAL for a, b in self.pairs) else ""

    @property
    def words(self) -> str:
        """Which sweep's loses less, if the difference is more than noise; or why that is not to be said."""
        return self.obstacle or outcome(self.better, self.noise, "B loses less", "A loses less")


@dataclass(frozen=True)
class GroupComparison:
    """Two sweeps' runs of one model on one data set.

    Attributes:
        title: Model and data set.
        comparisons: Configurations that both have, by rising sparsity in A.
        left_out: Configurations or runs without a counterpart, and why.
    """

    title: str
    comparisons: tuple[Comparison, ...]
    left_out: tuple[str, ...]

    def summary(self) -> list[str]:
        """Return what was found, in words."""
        lines = [f"{self.title}: {len(self.comparisons)} configurations are in both sweeps, paired by seed and data."]
        fair = [comparison for comparison in self.comparisons if not comparison.obstacle]
        if fair:
            count = Counter(comparison.words for comparison in fair)
            counted = (f"{words} in {count[words]}" for words in ("B loses less", "A loses less"))
            lines.append(f"Of test accuracy {', '.join(counted)}, {count['within the noise']} within the noise.")
            lines.append(_overall(fair))
        unfair = defaultdict(list)
        for comparison in self.comparisons:
            if comparison.obstacle:
                unfair[comparison.obstacle].append(comparison.name)
        lines += [f"No verdict, {words}: {_some(names)}." for words, names in sorted(unfair.items())]
        return [*lines, *self.left_out]


def compare(a: Sequence[Group], b: Sequence[Group]) -> list[GroupComparison]:
    """Compare two sweeps, model by model.

    Configurations match by their names; settings count where they vary within a sweep, so that two sweeps which differ
    in a setting throughout are compared for it.

    Args:
        a: Groups of the first sweep.
        b: Groups of the second.

    Returns:
        A comparison for each model and data set of either; one that only one sweep has compares nothing and says so.
    """
    ours, theirs = ({group.title: group for group in groups} for groups in (a, b))
    found = [_compare(ours[title], theirs[title]) for title in ours if title in theirs]
    for sweep, only in (("A", ours.keys() - theirs.keys()), ("B", theirs.keys() - ours.keys())):
        found += [GroupComparison(title, (), (f"Only {sweep} has this model and data set.",)) for title in sorted(only)]
    return found


def _compare(a: Group, b: Group) -> GroupComparison:
    settings = [what for what in SETTINGS if a.varies(what) or b.varies(what)]
    ours, theirs = _by_name(a, settings), _by_name(b, settings)
    found, left_out = [], []
    for name in sorted(ours.keys() & theirs.keys()):
        if ambiguous := [sweep for sweep, runs in (("A", ours[name]), ("B", theirs[name])) if _repeated(runs)]:
            left_out.append(f"{name}: several runs of one seed in {' and '.join(ambiguous)}; not compared.")
            continue
        by_seed = {run.seed: run for run in theirs[name]}
        pairs = tuple((run, by_seed[run.seed]) for run in ours[name] if run.seed in by_seed)
        same_data = tuple(pair for pair in pairs if pair[0].data_fingerprint == pair[1].data_fingerprint)
        if not same_data:
            left_out.append(f"{name}: {'other images' if pairs else 'no seed in common'}; not compared.")
            continue
        found.append(Comparison(name, same_data, *difference([(b, a) for a, b in same_data])))
    for sweep, only in (("A", ours.keys() - theirs.keys()), ("B", theirs.keys() - ours.keys())):
        if only:
            left_out.append(f"Only in {sweep}: {_some(sorted(only))}.")
    found.sort(key=lambda comparison: comparison.pairs[0][0].sparsity)
    return GroupComparison(a.title, tuple(found), tuple(left_out))


def _overall(comparisons: Sequence[Comparison]) -> str:
    """Return the mean over configurations that have all seeds, so that seeds differ in nothing else."""
    most = max(len(comparison.pairs) for comparison in comparisons)
    complete = [comparison for comparison in comparisons if len(comparison.pairs) == most]
    by_seed = defaultdict(list)
    for comparison in complete:
        for a, b in comparison.pairs:
            by_seed[a.seed].append(a.drop - b.drop)
    means = [statistics.fmean(differences) for differences in by_seed.values()]
    told = f"Over {'all' if len(complete) == len(comparisons) else f'the {len(complete)} with all seeds'}"
    if len(means) == 1:
        return f"{told}, B loses {means[0]:+.2f} points less than A (one seed: no interval)."
    better, noise = paired(means)
    return f"{told}, B loses {better:+.2f} ± {noise:.2f} points less than A ({len(means)} seeds)."


def _by_name(group: Group, settings: Sequence[str]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for one in group.configurations:
        words = (one.runs[0].configuration, *(getattr(one.runs[0], what) for what in settings), one.other)
        found[" ".join(filter(None, words))] += one.runs
    return found


def _repeated(runs: Sequence[Run]) -> bool:
    return len({run.seed for run in runs}) < len(runs)


def _some(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
