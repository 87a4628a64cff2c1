"""Verdicts: at each sparsity, the best strategy against the best baseline, and whether they differ by more than noise.

Both are chosen on validation accuracy and compared on test accuracy, paired by seed: the same dense model, splits and
order of data. Runs are compared only with runs of the same schedule, pattern, reconstruction and fine-tuning.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit  # scipy.stats takes half a second to import

from mmp.report.results import Run

BAND = 0.01  # sparsities that differ by no more are compared
_PROTOCOL = ("schedule", "pattern", "reconstruct", "finetune")
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """One comparison. Sparsities are fractions; drops, ``better`` and ``noise`` are in points of test accuracy.

    Attributes:
        sparsities: Least and greatest sparsity that was compared.
        protocol: Schedule, pattern, reconstruction and fine-tuning of both.
        strategy: The best strategy's runs, one per seed.
        baseline: The best baseline's, for the same seeds.
        better: By how much less the strategy loses, mean over seeds.
        noise: Half the 95 % confidence interval of ``better``: Student's t over paired seeds; with one seed, what the
            number of test images allows for two independent models.
    """

    sparsities: tuple[float, float]
    protocol: tuple[str, ...]
    strategy: tuple[Run, ...]
    baseline: tuple[Run, ...]
    better: float
    noise: float

    @property
    def words(self) -> str:
        """Who wins, if the difference is more than noise."""
        return outcome(self.better, self.noise, "strategy wins", "baseline wins")


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    """Return the verdicts of one model on one data set, by rising sparsity; none without baselines.

    Args:
        runs: Its completed runs.
    """
    by_protocol: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        by_protocol[*(getattr(run, key) for key in _PROTOCOL), run.protocol].append(run)
    found = []
    for (*protocol, _), members in by_protocol.items():
        for band in bands(members):
            strategies, baselines = ([r for r in band if bool(r.criterion) is kind] for kind in (False, True))
            found += _compare(tuple(protocol), strategies, baselines)
    return sorted(found, key=lambda verdict: (verdict.sparsities, verdict.protocol))


def bands(runs: Iterable[Run]) -> list[list[Run]]:
    """Divide runs into groups of sparsities that lie no more than `BAND` apart."""
    found: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: run.sparsity):
        if not found or run.sparsity - found[-1][0].sparsity > BAND + 1e-9:
            found.append([])
        found[-1].append(run)
    return found


def outcome(better: float, noise: float, first: str, second: str) -> str:
    """Return what a comparison says: ``first`` or ``second``, if the difference is more than noise."""
    if abs(better) > noise:
        return first if better > 0 else second
    return "within the noise"


def difference(pairs: Sequence[tuple[Run, Run]]) -> tuple[float, float]:
    """Return by how many points of test accuracy the first of each pair loses less, and half the 95 % interval.

    Args:
        pairs: Runs of two configurations on the same seed and data, one pair per seed. The interval is Student's t
            over seeds, but never less than the number of test images allows; with one pair it is what they allow for
            two independent models.
    """
    differences = [second.drop - first.drop for first, second in pairs]
    if len(pairs) == 1:
        return differences[0], _binomial(pairs[0])
    better, noise = paired(differences)
    return better, max(noise, _least(differences, pairs[0][0].test_samples))


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """Return the mean of paired differences and half its 95 % confidence interval, by Student's t; needs two."""
    n = len(differences)
    half = stdtrit(n - 1, (1 + _CONFIDENCE) / 2) * statistics.stdev(differences) / math.sqrt(n)
    return statistics.fmean(differences), float(half)


def _compare(protocol: tuple[str, ...], strategies: Sequence[Run], baselines: Sequence[Run]) -> list[Verdict]:
    strategy = _best(strategies, {run.seed for run in baselines})
    baseline = _best(baselines, set(strategy))
    pairs = [(strategy[seed], baseline[seed]) for seed in sorted(strategy.keys() & baseline.keys())]
    if not pairs:
        return []
    better, noise = difference(pairs)
    sparsities = [run.sparsity for pair in pairs for run in pair]
    ours, theirs = zip(*pairs, strict=True)
    return [Verdict((min(sparsities), max(sparsities)), protocol, ours, theirs, better, noise)]


def _best(runs: Sequence[Run], seeds: set[int]) -> dict[int, Run]:
    """Return the runs, by seed, of the configuration that is best on validation, among those with most of the seeds."""
    by_configuration: dict[tuple[str, ...], dict[int, Run]] = defaultdict(dict)
    for run in runs:
        by_configuration[run.configuration, run.ranges, run.budget, run.settings][run.seed] = run

    if not by_configuration:
        return {}

    def worth(of_seed: dict[int, Run]) -> tuple[int, float]:
        shared = [run.validation for seed, run in of_seed.items() if seed in seeds]
        return len(shared), statistics.fmean(shared) if shared else 0.0

    return max(by_configuration.values(), key=worth)


def _least(differences: Sequence[float], samples: int) -> float:
    """Return the least half interval that differences can have, in points: a few seeds may agree by chance.

    Two models that differ by d of n images disagree on at least d, so the standard error of their difference is at
    least sqrt(d) / n (McNemar, Psychometrika 12, 1947).
    """
    images = abs(sum(differences)) / 100 * samples
    return 196 * math.sqrt(images) / (samples * len(differences)) if samples else 0.0


def _binomial(pair: tuple[Run, Run]) -> float:
    return 196 * math.sqrt(sum(run.test * (1 - run.test) / max(run.test_samples, 1) for run in pair))
