"""The summary: the findings of a sweep about one model and data set, in at most ten lines.

Every choice is made by validation accuracy. Every claim is about test accuracy, with its 95 % interval.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from mmp.errors import listed
from mmp.report.groups import Configuration, Group
from mmp.report.verdict import Verdict, difference, outcome, verdicts

_EDGES = (0.5, 0.7, 0.8, 0.9)  # between the sparsity bands in which the best configuration is named
_EDGES_OF_CHANNELS = (0.4, 0.6, 0.8)  # the same for the share of parameters that is removed
_SLACK = 0.005  # by which a sparsity may exceed the upper edge of its band: a target of 90 % is not met exactly
_MOST_NAMES = 6


def summary_of(group: Group) -> list[str]:
    """Return the lines: the runs, the noise, the best of each sparsity band, the Pareto front, the baselines."""
    return [
        _head(group),
        _noise(group),
        *(_best(low, high, members) for (low, high), members in _bands(group)),
        _front(group),
        *_baselines(group),
    ]


def points(configuration: Configuration) -> str:
    """Return a configuration's drop in points, with its standard deviation over seeds if there are several."""
    spread = configuration.spread()
    return f"{configuration.mean('drop'):+.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def standing(best: Configuration, other: Configuration) -> str:
    """Return how one configuration compares with another on test accuracy, over the seeds that both have.

    Returns:
        ``better``, ``worse``, ``within the noise``, ``same masks`` or ``no common seed``.
    """
    if other.name in best.twins:
        return "same masks"
    runs = {run.seed: run for run in other.runs}
    pairs = [(run, runs[run.seed]) for run in best.runs if run.seed in runs]
    return outcome(*difference(pairs), "better", "worse") if pairs else "no common seed"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _head(group: Group) -> str:
    run, count = group.runs[0], len(group.configurations)
    seeds = f" x {group.seeds} seeds" if group.seeds > 1 else ""
    dense = [100 * accuracy for accuracy in group.dense("test")]
    spread = f" ± {statistics.stdev(dense):.2f}" if len(dense) > 1 else ""
    absent = count * group.seeds - len(group.runs)
    missing = f", {counted(absent, 'run')} missing" if absent > 0 else ""
    return (
        f"{group.title}: {counted(count, 'configuration')}{seeds}{missing}. Dense model: test accuracy "
        f"{statistics.fmean(dense):.2f}{spread} % on {run.test_samples} images, {run.parameters:,} parameters, "
        f"{run.dense_megabytes:.2f} MB."
    )


def _noise(group: Group) -> str:
    parts = [f"the standard error of a test accuracy is {100 * group.noise('test'):.2f} points"]
    if spreads := group.spreads():
        parts.append(
            f"the standard deviation of a drop over seeds is {statistics.median(spreads):.2f} points "
            f"(median; range {spreads[0]:.2f} to {spreads[-1]:.2f})"
        )
    if repeats := group.repeats():
        parts.append(
            f"runs with identical masks differ by up to {max(repeats):.2f} points ({counted(len(repeats), 'case')})"
        )
    return f"Noise: {'; '.join(parts)}."


def _bands(group: Group) -> list[tuple[tuple[float, float], list[Configuration]]]:
    bands: dict[tuple[float, float], list[Configuration]] = defaultdict(list)
    edges = (0.0, *(_EDGES_OF_CHANNELS if group.whole_channels else _EDGES), 1.0)
    for one in group.configurations:
        share = one.mean("reduction") - _SLACK
        bands[next(pair for pair in pairwise(edges) if share < pair[1])].append(one)
    return sorted(bands.items())


def _best(low: float, high: float, members: Sequence[Configuration]) -> str:
    """Return the line that names the best configuration of a band, and how the others compare with it."""
    most = max(one.seeds for one in members)
    best = min((one for one in members if one.seeds == most), key=lambda one: one.validation_drop)
    by_standing: dict[str, list[Configuration]] = defaultdict(list)
    for other in reversed(members):  # the sparsest are named first
        if other is not best:
            by_standing[standing(best, other)].append(other)
    return (
        f"Best on validation, {100 * low:.0f} to {100 * high:.0f} % {_kind_of_share(best)}: {best.name} at "
        f"{100 * best.mean('reduction'):.1f} %, {_left(best)}drop {points(best)} points, "
        f"{best.mean('megabytes'):.2f} MB. {_others(by_standing)}."
    )


def _kind_of_share(configuration: Configuration) -> str:
    return "of the parameters removed" if configuration.runs[0].whole_channels else "sparsity"


def _left(configuration: Configuration) -> str:
    share = configuration.known_mean("multiply_adds")
    return "" if share is None else f"{100 * share:.1f} % of the multiply-adds left, "


def _others(by_standing: Mapping[str, Sequence[Configuration]]) -> str:
    """Return how the best configuration of a band compares with all others, as one sentence."""
    phrases = {
        "worse": "worse than",
        "within the noise": "within the noise of",
        "no common seed": "no common seed with",
        "same masks": "same masks as",
    }
    parts = [f"{words} {_names(by_standing[key], most=2)}" for key, words in phrases.items() if key in by_standing]
    if beaten := len(by_standing.get("better", ())):
        parts.append(f"better than the other {beaten}")
    return f"On test: {'; '.join(parts)}" if parts else "The only configuration in this band"


def _front(group: Group) -> str:
    front = [one for one in group.configurations if one.efficient]
    return f"Pareto-efficient on validation ({len(front)} of {len(group.configurations)}): {_names(front)}."


def _names(configurations: Sequence[Configuration], most: int = _MOST_NAMES) -> str:
    return listed(dict.fromkeys(one.name for one in configurations), most)


def _baselines(group: Group) -> list[str]:
    """Return one line, or none without baselines: at which sparsities strategies beat baselines or lose to them."""
    found = verdicts(group.runs)
    if not found:
        return []
    names = {run.folder: one.name for one in group.configurations for run in one.runs}
    parts = [
        _win_or_loss(verdict, names)
        for words in ("strategy wins", "baseline wins")
        for verdict in found
        if verdict.words == words
    ]
    if same := [_at(verdict) for verdict in found if verdict.words == "within the noise"]:
        parts.append(f"within the noise at {', '.join(same)} sparsity")
    return [f"Best strategy against best baseline: {'; '.join(parts)}."]


def _win_or_loss(verdict: Verdict, names: Mapping[str, str]) -> str:
    ours, theirs = (statistics.fmean(run.drop for run in runs) for runs in (verdict.strategy, verdict.baseline))
    ratio = f", ratio {ours / theirs:.2f}" if ours > 0 and theirs > 0 else ""
    verb = "beats" if verdict.better > 0 else "loses to"
    return (
        f"at {_at(verdict)} sparsity, {names[verdict.strategy[0].folder]} {verb} {names[verdict.baseline[0].folder]} "
        f"by {abs(verdict.better):.2f} ± {verdict.noise:.2f} points "
        f"(drop {ours:+.2f} against {theirs:+.2f}{ratio}; {counted(len(verdict.strategy), 'seed')})"
    )


def _at(verdict: Verdict) -> str:
    """Return the sparsity at which two configurations were compared, or both of their sparsities."""
    low, high = (f"{100 * value:.1f}" for value in verdict.sparsities)
    return f"{low} %" if low == high else f"{low} to {high} %"
