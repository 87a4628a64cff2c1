"""The summary: what a sweep has found about one model, in at most ten lines.

Every choice is made on validation accuracy and every claim on test accuracy, with its 95 % interval beside it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from mmp.report.groups import Configuration, Group
from mmp.report.verdict import Verdict, difference, outcome, verdicts

_EDGES = (0.5, 0.7, 0.8, 0.9)  # of the sparsity bands in which a best configuration is named
_MOST_NAMES = 6


def summary_of(group: Group) -> list[str]:
    """Return the lines: what was run, the noise, the best of each sparsity band, the front, the baselines."""
    return [
        _head(group),
        _noise(group),
        *(_best(low, high, members) for (low, high), members in _bands(group)),
        _front(group),
        *_baselines(group),
    ]


def points(configuration: Configuration) -> str:
    """Return a configuration's drop in points, with its standard deviation over seeds where there are several."""
    spread = configuration.spread()
    return f"{configuration.mean('drop'):+.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def standing(best: Configuration, other: Configuration) -> str:
    """Return how a configuration stands to another on test data: ``same masks``, ``no seed in common``, or its outcome.

    The outcome, on the seeds they share, is ``better``, ``worse`` or ``within the noise``, of ``best``.
    """
    if other.name in best.twins:
        return "same masks"
    runs = {run.seed: run for run in other.runs}
    pairs = [(run, runs[run.seed]) for run in best.runs if run.seed in runs]
    return outcome(*difference(pairs), "better", "worse") if pairs else "no seed in common"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _head(group: Group) -> str:
    run, count = group.runs[0], len(group.configurations)
    seeds = f" x {group.seeds} seeds" if group.seeds > 1 else ""
    dense = [100 * accuracy for accuracy in group.dense("test")]
    spread = f" ± {statistics.stdev(dense):.2f}" if len(dense) > 1 else ""
    absent = count * group.seeds - len(group.runs)
    missing = f", {counted(absent, 'run')} missing" if absent > 0 else ""
    return (
        f"{group.title}: {counted(count, 'configuration')}{seeds}{missing}; "
        f"dense {statistics.fmean(dense):.2f}{spread} % on {run.test_samples} test images, "
        f"{run.parameters:,} parameters, {run.dense_megabytes:.2f} MB."
    )


def _noise(group: Group) -> str:
    noise = 100 * group.noise("test")
    told = [f"one standard error of a test accuracy is {noise:.2f} points"]
    if spreads := group.spreads():
        told.append(
            f"over seeds a drop varies by {statistics.median(spreads):.2f} points (median standard deviation; "
            f"{spreads[0]:.2f} to {spreads[-1]:.2f})"
        )
    if repeats := group.repeats():
        told.append(
            f"configurations with identical masks, {counted(len(repeats), 'time')}, differ by up to "
            f"{max(repeats):.2f} points"
        )
    return f"Noise: {'; '.join(told)}."


def _bands(group: Group) -> list[tuple[tuple[float, float], list[Configuration]]]:
    bands: dict[tuple[float, float], list[Configuration]] = defaultdict(list)
    edges = (0.0, *_EDGES, 1.0)
    for one in group.configurations:
        # Half a percent of slack: what is asked to be 90 % sparse lands beside it.
        sparsity = one.mean("sparsity") - 0.005
        bands[next(pair for pair in pairwise(edges) if sparsity < pair[1])].append(one)
    return sorted(bands.items())


def _best(low: float, high: float, members: Sequence[Configuration]) -> str:
    most = max(one.seeds for one in members)
    best = min((one for one in members if one.seeds == most), key=lambda one: one.validation_drop)
    by_standing: dict[str, list[Configuration]] = defaultdict(list)
    for other in reversed(members):  # the sparsest are named first
        if other is not best:
            by_standing[standing(best, other)].append(other)
    worded = {
        "worse": "on test it is worse than",
        "within the noise": "not told apart by test accuracy:",
        "no seed in common": "no seed in common with",
        "same masks": "same masks as",
    }
    told = [f"{words} {_names(by_standing[kind], most=2)}" for kind, words in worded.items() if by_standing[kind]]
    if beaten := len(by_standing["better"]):
        told.append(f"on test it is better than {'the other' if told else 'all other'} {beaten}")
    return (
        f"{100 * low:.0f} to {100 * high:.0f} % sparse: {best.name} at {100 * best.mean('sparsity'):.1f} %, drop "
        f"{points(best)}, {best.mean('megabytes'):.2f} MB; {'; '.join(told) or 'the only one'}."
    )


def _front(group: Group) -> str:
    front = [one for one in group.configurations if one.efficient]
    return f"Pareto-efficient on validation ({len(front)} of {len(group.configurations)}): {_names(front)}."


def _names(configurations: Sequence[Configuration], most: int = _MOST_NAMES) -> str:
    names = list(dict.fromkeys(one.name for one in configurations))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _baselines(group: Group) -> list[str]:
    """Return one line: at which sparsities the best strategy beats the best baseline, loses to it, or does neither."""
    found = verdicts(group.runs)
    if not found:
        return []
    names = {run.folder: one.name for one in group.configurations for run in one.runs}
    told = [
        _told(verdict, names)
        for words in ("strategy wins", "baseline wins")
        for verdict in found
        if verdict.words == words
    ]
    if same := [_at(verdict) for verdict in found if verdict.words == "within the noise"]:
        told.append(f"no difference beyond the noise at {', '.join(same)}")
    return [f"Strategies against baselines: {'; '.join(told)}."]


def _told(verdict: Verdict, names: Mapping[str, str]) -> str:
    ours, theirs = (statistics.fmean(run.drop for run in runs) for runs in (verdict.strategy, verdict.baseline))
    ratio = f", {ours / theirs:.2f} of it" if ours > 0 and theirs > 0 else ""
    return (
        f"at {_at(verdict)} {names[verdict.strategy[0].folder]} {'beats' if verdict.better > 0 else 'loses to'} "
        f"{names[verdict.baseline[0].folder]} by {abs(verdict.better):.2f} ± {verdict.noise:.2f} points "
        f"(drop {ours:+.2f} against {theirs:+.2f}{ratio}; {counted(len(verdict.strategy), 'seed')})"
    )


def _at(verdict: Verdict) -> str:
    """Return where two were compared: at one sparsity, or at two that are near."""
    low, high = (f"{100 * value:.1f}" for value in verdict.sparsities)
    return f"{low} %" if low == high else f"{low} to {high} %"
