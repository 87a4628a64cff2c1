"""Verdicts: at each sparsity, the best strategy against the best baseline, and whether the difference exceeds noise.

Both are chosen by validation accuracy and compared by test accuracy, paired by seed: the same dense model, splits and
order of the data. Only runs with the same schedule, pattern, reconstruction and fine-tuning are compared.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit  # scipy.stats takes half a second to import

from mmp.report.results import Run

BAND = 0.01  # sparsities that differ by at most this are compared
_PROTOCOL = ("schedule", "pattern", "reconstruct", "finetune")
_CONFIDENCE = 0.95
_NORMAL_QUANTILE = 196  # of a 95 % interval, 1.96, times 100 for points


@dataclass(frozen=True)
class Verdict:
    """One comparison. Sparsities are fractions; drops, ``better`` and ``noise`` are in points of test accuracy.

    Attributes:
        sparsities: The lowest and the highest sparsity of the runs.
        protocol: Schedule, pattern, reconstruction and fine-tuning of both.
        strategy: The runs of the best strategy, one per seed.
        baseline: The runs of the best baseline, for the same seeds.
        better: Drop of the baseline minus drop of the strategy, mean over seeds.
        noise: Half the 95 % confidence interval of ``better``, see :func:`difference`.
    """

    sparsities: tuple[float, float]
    protocol: tuple[str, ...]
    strategy: tuple[Run, ...]
    baseline: tuple[Run, ...]
    better: float
    noise: float

    @property
    def words(self) -> str:
        """Which of the two is better, or that their difference is within the noise."""
        return outcome(self.better, self.noise, "strategy wins", "baseline wins")


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    """Return the verdicts on one model and data set, by rising sparsity; none without baselines.

    Args:
        runs: Completed runs of one model on one data set.
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
    """Divide runs into groups whose sparsities differ by at most `BAND`."""
    found: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: run.reduction):
        if not found or run.reduction - found[-1][0].reduction > BAND + 1e-9:
            found.append([])
        found[-1].append(run)
    return found


def outcome(better: float, noise: float, first: str, second: str) -> str:
    """Return ``first`` or ``second``, whichever is better; ``within the noise`` if neither is."""
    if abs(better) > noise:
        return first if better > 0 else second
    return "within the noise"


def difference(pairs: Sequence[tuple[Run, Run]]) -> tuple[float, float]:
    """Return how many points less the first of each pair loses than the second, and half the 95 % interval of this.

    The interval is Student's t over seeds, but never narrower than the number of test images allows. With one pair, it
    is the interval of the difference of two independent accuracies on the test images.

    Args:
        pairs: Runs of two configurations, one pair per seed, both on the same data.
    """
    differences = [second.drop - first.drop for first, second in pairs]
    if len(pairs) == 1:
        return differences[0], _binomial_half_interval(pairs[0])
    better, noise = paired_interval(differences)
    return better, max(noise, _least_half_interval(differences, pairs[0][0].test_samples))


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the mean of at least two paired differences, and half its 95 % confidence interval by Student's t."""
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
    sparsities = [run.reduction for pair in pairs for run in pair]
    ours, theirs = zip(*pairs, strict=True)
    return [Verdict((min(sparsities), max(sparsities)), protocol, ours, theirs, better, noise)]


def _best(runs: Sequence[Run], seeds: set[int]) -> dict[int, Run]:
    """Return the runs, by seed, of the configuration with the best validation accuracy.

    Configurations that have more of the given seeds are preferred, whatever their accuracy.
    """
    by_configuration: dict[tuple[str, ...], dict[int, Run]] = defaultdict(dict)
    for run in runs:
        by_configuration[run.configuration, run.ranges, run.budget, run.settings][run.seed] = run
    if not by_configuration:
        return {}

    def rank(of_seed: dict[int, Run]) -> tuple[int, float]:
        shared = [run.validation for seed, run in of_seed.items() if seed in seeds]
        return len(shared), statistics.fmean(shared) if shared else 0.0

    return max(by_configuration.values(), key=rank)


def _least_half_interval(differences: Sequence[float], samples: int) -> float:
    """Return a lower bound of half the 95 % interval, in points, because a few seeds can agree by chance.

    If two models differ by d correct images of n, they disagree on at least d images, so the standard error of the
    difference of their accuracies is at least sqrt(d) / n (McNemar, Psychometrika 12, 1947).
    """
    images = abs(sum(differences)) / 100 * samples
    return _NORMAL_QUANTILE * math.sqrt(images) / (samples * len(differences)) if samples else 0.0


def _binomial_half_interval(pair: tuple[Run, Run]) -> float:
    """Return half the 95 % interval of the difference of two independent accuracies, in points."""
    variance = sum(run.test * (1 - run.test) / max(run.test_samples, 1) for run in pair)
    return _NORMAL_QUANTILE * math.sqrt(variance)
