"""Comparisons of two sweeps: each configuration of one against the same configuration of the other, paired by seed."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mmp.errors import listed
from mmp.report.groups import Group
from mmp.report.results import SETTINGS, Run
from mmp.report.summary import counted
from mmp.report.verdict import difference, outcome, paired_interval

_EQUAL = 1e-3  # sparsities that differ by less count as equal


@dataclass(frozen=True)
class Comparison:
    """One configuration in two sweeps, A and B. ``better`` and ``noise`` are in points of test accuracy.

    Attributes:
        name: The configuration's name.
        pairs: Its runs in A and in B, one pair per seed.
        better: Drop in A minus drop in B, mean over seeds.
        noise: Half the 95 % confidence interval of ``better``.
    """

    name: str
    pairs: tuple[tuple[Run, Run], ...]
    better: float
    noise: float

    @property
    def obstacle(self) -> str:
        """Why the two cannot be compared; empty if they can."""
        if any(a.dense_test != b.dense_test for a, b in self.pairs):
            return "different dense models"
        return "different sparsities" if any(abs(a.reduction - b.reduction) >= _EQUAL for a, b in self.pairs) else ""

    @property
    def words(self) -> str:
        """Which sweep is better, that the difference is within the noise, or why the two cannot be compared."""
        return self.obstacle or outcome(self.better, self.noise, "B better", "A better")


@dataclass(frozen=True)
class GroupComparison:
    """The runs of two sweeps with one model on one data set.

    Attributes:
        title: Model and data set.
        comparisons: The configurations in both sweeps, by rising sparsity in A.
        left_out: Sentences that name configurations which are not compared, and why.
    """

    title: str
    comparisons: tuple[Comparison, ...]
    left_out: tuple[str, ...]

    def summary(self) -> list[str]:
        """Return the findings, as lines of text."""
        both = counted(len(self.comparisons), "configuration")
        lines = [f"{self.title}: {both} in both sweeps, paired by seed and data."]
        fair = [comparison for comparison in self.comparisons if not comparison.obstacle]
        if fair:
            count = Counter(comparison.words for comparison in fair)
            better = f"B is better in {count['B better']}, A in {count['A better']}"
            lines.append(f"On test accuracy, {better}; {count['within the noise']} are within the noise.")
            lines.append(_overall(fair))
        unfair = defaultdict(list)
        for comparison in self.comparisons:
            if comparison.obstacle:
                unfair[comparison.obstacle].append(comparison.name)
        lines += [
            f"Not compared because of {words}: {listed(names, most=6)}." for words, names in sorted(unfair.items())
        ]
        return [*lines, *self.left_out]


def compare(a: Sequence[Group], b: Sequence[Group]) -> list[GroupComparison]:
    """Compare two sweeps, for each model and data set.

    Configurations are matched by name. A setting is part of the name only if it varies within a sweep; so two sweeps
    that differ in one setting throughout can be compared.

    Args:
        a: Groups of the reference.
        b: Groups of the other sweep.

    Returns:
        A comparison for each model and data set of either sweep; without configurations if only one sweep has it.
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
        pairs, obstacle = _paired_runs(ours[name], theirs[name])
        if obstacle:
            left_out.append(f"Not compared: {name} has {obstacle}.")
        else:
            found.append(Comparison(name, pairs, *difference([(b, a) for a, b in pairs])))
    for sweep, only in (("A", ours.keys() - theirs.keys()), ("B", theirs.keys() - ours.keys())):
        if only:
            left_out.append(f"Only in {sweep}: {listed(sorted(only), most=6)}.")
    found.sort(key=lambda comparison: comparison.pairs[0][0].reduction)
    return GroupComparison(a.title, tuple(found), tuple(left_out))


def _paired_runs(ours: Sequence[Run], theirs: Sequence[Run]) -> tuple[tuple[tuple[Run, Run], ...], str]:
    """Return the runs of one configuration in A and B, paired by seed, or why there are no pairs."""
    if ambiguous := [sweep for sweep, runs in (("A", ours), ("B", theirs)) if _repeated(runs)]:
        return (), f"several runs per seed in {' and '.join(ambiguous)}"
    by_seed = {run.seed: run for run in theirs}
    pairs = tuple((run, by_seed[run.seed]) for run in ours if run.seed in by_seed)
    if not pairs:
        return (), "no common seed"
    same_data = tuple((a, b) for a, b in pairs if a.data_fingerprint == b.data_fingerprint)
    return same_data, "" if same_data else "different images"


def _overall(comparisons: Sequence[Comparison]) -> str:
    """Return the mean over the configurations that have all seeds, so that seeds differ in nothing else."""
    most = max(len(comparison.pairs) for comparison in comparisons)
    complete = [comparison for comparison in comparisons if len(comparison.pairs) == most]
    by_seed = defaultdict(list)
    for comparison in complete:
        for a, b in comparison.pairs:
            by_seed[a.seed].append(a.drop - b.drop)
    means = [statistics.fmean(differences) for differences in by_seed.values()]
    scope = "all configurations" if len(complete) == len(comparisons) else f"the {len(complete)} with all seeds"
    if len(means) == 1:
        return f"Mean over {scope}: B is better by {means[0]:+.2f} points (one seed: no interval)."
    better, noise = paired_interval(means)
    return f"Mean over {scope}: B is better by {better:+.2f} ± {noise:.2f} points ({len(means)} seeds)."


def _by_name(group: Group, settings: Sequence[str]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for one in group.configurations:
        words = (one.runs[0].configuration, *(getattr(one.runs[0], what) for what in settings), one.other)
        found[" ".join(filter(None, words))] += one.runs
    return found


def _repeated(runs: Sequence[Run]) -> bool:
    return len({run.seed for run in runs}) < len(runs)
