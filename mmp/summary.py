"""The summary: what a sweep has found about one model, in at most ten lines.

Every choice is made on validation accuracy and every claim on test accuracy, with its 95 % interval beside it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from mmp.configurations import Configuration, Group
from mmp.verdict import Verdict, difference, outcome, verdicts

_EDGES = (0.5, 0.7, 0.8, 0.9)  # of the sparsity bands in which a best configuration is named
_MOST_NAMES = 6


def summary_of(group: Group) -> list[str]:
    """Return the lines: what was run, the noise, the best of each sparsity band, the front, the baselines."""
    return [
        _head(group),
        _noise(group),
        *(_best(low, high, members) for (low, high), members in _bands(group)),
        _front(group),
        *_baselines(verdicts(group.runs)),
    ]


def points(configuration: Configuration) -> str:
    """Return a configuration's drop in points, with its standard deviation over seeds where there are several."""
    spread = configuration.spread()
    return f"{configuration.mean('drop'):+.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def rivals(best: Configuration, others: Sequence[Configuration]) -> list[Configuration]:
    """Return the configurations that test accuracy does not tell from ``best`` on the seeds they share."""
    found = []
    for other in others:
        runs = {run.seed: run for run in other.runs}
        pairs = [(run, runs[run.seed]) for run in best.runs if run.seed in runs]
        if other is not best and pairs and outcome(*difference(pairs), "", "") == "within the noise":
            found.append(other)
    return found


def _head(group: Group) -> str:
    run, count = group.runs[0], len(group.configurations)
    seeds = f" x {group.seeds} seeds" if group.seeds > 1 else ""
    dense = {run.seed: 100 * run.dense_test for run in group.runs}
    spread = f" ± {statistics.stdev(dense.values()):.2f}" if len(dense) > 1 else ""
    missing = count * group.seeds - len(group.runs)
    return (
        f"{group.title}: {count} configurations{seeds}" + (f", {missing} runs missing" if missing > 0 else "") + "; "
        f"dense {statistics.fmean(dense.values()):.2f}{spread} % on {run.test_samples} test images, "
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
        told.append(f"{len(repeats)} runs repeated with identical masks differ by up to {max(repeats):.2f} points")
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
    same = rivals(best, members)
    names = _names([other for other in reversed(same) if other.name not in best.twins], most=2)
    others = "the only one" if len(members) == 1 else f"told from the other {len(members) - 1}"
    return (
        f"{100 * low:.0f} to {100 * high:.0f} % sparse: {best.name} at {100 * best.mean('sparsity'):.1f} %, drop "
        f"{points(best)}, {best.mean('megabytes'):.2f} MB; "
        f"{f'not told apart by test accuracy: {names}' if names else others}."
    )


def _front(group: Group) -> str:
    front = [one for one in group.configurations if one.efficient]
    return f"Pareto-efficient on validation ({len(front)} of {len(group.configurations)}): {_names(front)}."


def _names(configurations: Sequence[Configuration], most: int = _MOST_NAMES) -> str:
    names = list(dict.fromkeys(one.name for one in configurations))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _baselines(found: Sequence[Verdict]) -> list[str]:
    """Return one line: at which sparsities the best strategy beats the best baseline, loses to it, or does neither."""
    if not found:
        return []
    told = []
    for words in ("strategy wins", "baseline wins"):
        for one in (verdict for verdict in found if verdict.words == words):
            ours, theirs = (statistics.fmean(run.drop for run in runs) for runs in (one.strategy, one.baseline))
            ratio = f", {ours / theirs:.2f} of it" if ours > 0 and theirs > 0 else ""
            told.append(
                f"at {100 * one.sparsities[0]:.1f} % {one.strategy[0].configuration} "
                f"{'beats' if one.better > 0 else 'loses to'} {one.baseline[0].configuration} by {abs(one.better):.2f} "
                f"± {one.noise:.2f} points (drop {ours:+.2f} against {theirs:+.2f}{ratio}; {len(one.strategy)} seeds)"
            )
    same = [f"{100 * verdict.sparsities[0]:.1f}" for verdict in found if verdict.words == "within the noise"]
    if same:
        told.append(f"at {', '.join(same)} % neither is better than the noise")
    return [f"Strategies against baselines: {'; '.join(told)}."]
