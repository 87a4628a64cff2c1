"""Comparisons of two sweeps: each configuration of one against the same of the other, paired by seed."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmp.configurations import Group
from mmp.results import SETTINGS, Run
from mmp.verdict import difference, outcome, paired


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
    def words(self) -> str:
        """Which sweep's is better, if the difference is more than noise."""
        return outcome(self.better, self.noise, "B is better", "A is better")

    @property
    def same_sparsity(self) -> bool:
        """Whether both are equally sparse, to a tenth of a percent."""
        return all(abs(a.sparsity - b.sparsity) < 1e-3 for a, b in self.pairs)


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
        count = Counter(comparison.words for comparison in self.comparisons)
        lines = [f"{self.title}: {len(self.comparisons)} configurations are in both sweeps, paired by seed and data."]
        if self.comparisons:
            counted = (f"{words} in {count[words]}" for words in ("B is better", "A is better"))
            lines.append(f"Test accuracy: {', '.join(counted)}, {count['within the noise']} within the noise.")
            lines.append(self._overall())
        if other := [c.name for c in self.comparisons if not c.same_sparsity]:
            lines.append(f"Not equally sparse in both: {', '.join(other[:6])}{' ...' if len(other) > 6 else ''}.")
        return [*lines, *self.left_out]

    def _overall(self) -> str:
        by_seed = defaultdict(list)
        for comparison in self.comparisons:
            for a, b in comparison.pairs:
                by_seed[a.seed].append(a.drop - b.drop)
        means = [statistics.fmean(differences) for differences in by_seed.values()]
        if len(means) == 1:
            return f"Over all of them B loses {means[0]:+.2f} points less than A (one seed: no interval)."
        better, noise = paired(means)
        return f"Over all of them B loses {better:+.2f} ± {noise:.2f} points less than A ({len(means)} seeds)."


def compare(a: Sequence[Group], b: Sequence[Group]) -> list[GroupComparison]:
    """Compare two sweeps, model by model.

    Configurations match by their names; settings count where they vary within a sweep, so that two sweeps which differ
    in a setting throughout are compared for it.

    Args:
        a: Groups of the first sweep.
        b: Groups of the second.
    """
    theirs = {group.title: group for group in b}
    return [_compare(group, theirs[group.title]) for group in a if group.title in theirs]


def _compare(a: Group, b: Group) -> GroupComparison:
    settings = [what for what in SETTINGS if a.varies(what) or b.varies(what)]
    ours, theirs = _by_name(a.runs, settings), _by_name(b.runs, settings)
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
            left_out.append(f"Only in {sweep}: {', '.join(sorted(only)[:6])}{' ...' if len(only) > 6 else ''}.")
    dense = [pair for comparison in found for pair in comparison.pairs if pair[0].dense_test != pair[1].dense_test]
    if dense:
        left_out.append("The dense models differ, so that drops are of different models.")
    found.sort(key=lambda comparison: comparison.pairs[0][0].sparsity)
    return GroupComparison(a.title, tuple(found), tuple(left_out))


def _by_name(runs: Iterable[Run], settings: Sequence[str]) -> dict[str, list[Run]]:
    found = defaultdict(list)
    for run in runs:
        found[" ".join(filter(None, (run.configuration, *(getattr(run, what) for what in settings))))].append(run)
    return found


def _repeated(runs: Sequence[Run]) -> bool:
    return len({run.seed for run in runs}) < len(runs)
