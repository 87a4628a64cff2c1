"""Writes the tables of docs/study.md from the rows of the study, and draws its picture.

A chosen configuration is the one with the best mean validation accuracy over the seeds, as in a sweep's report.
Comparisons use test accuracy. A drop is in points of test accuracy below the dense network.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from benchmarks.row_files import Row
from benchmarks.study_runs import BASELINES, OURS, RESOLVED, SIGNALS, SOLVED, SPARSITIES, UNPRUNED, Run, strategies
from benchmarks.tables import NOTHING, difference, fill_page, spread
from mmp.errors import MmpError
from mmp.markdown import table_of

PAGE, PICTURE = Path("docs/study.md"), Path("docs/images/study.png")
PAPERS = ("MAG", "SNIP", "GraSP")  # the criteria that the paper compares with
TITLES = {
    "resnet20": "ResNet-20", "resnet20_zeros": "ResNet-20, shortcuts without weights", "resnet56_zeros": "ResNet-56",
}  # fmt: skip

BySeed = dict[int, Row]
Found = Mapping[Run, BySeed]  # the rows of a network at one sparsity
Level = tuple[str, float]  # a network and a sparsity


def write_report(rows: Sequence[Row]) -> None:
    """Write the tables into their places in docs/study.md, and draw the picture.

    Raises:
        MmpError: if rows of a network were measured with different recipes.
    """
    require_one_recipe(rows)
    levels = by_level(rows)
    tables = {
        "study: networks": networks_table(rows),
        "study: claims": claims_table(levels),
        "study: signals": signals_table(levels),
        **{f"study: {network}": network_table(levels, network) for network in SPARSITIES},
    }
    fill_page(PAGE, tables)
    draw(levels, PICTURE)


def require_one_recipe(rows: Iterable[Row]) -> None:
    """Raise an error if rows of a network differ in the settings that they share.

    Raises:
        MmpError: if so; the message names two recipes.
    """
    found: dict[str, str] = {}
    for row in rows:
        other = found.setdefault(row["network"], row["recipe"])
        if other != row["recipe"]:
            raise MmpError(
                f"rows of {row['network']} have the recipes {other} and {row['recipe']}; remove the older rows"
            )


def by_level(rows: Iterable[Row]) -> dict[Level, dict[Run, BySeed]]:
    """Return the rows of each network and sparsity, by run and seed; unpruned networks are left out."""
    found: dict[Level, dict[Run, BySeed]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["method"] != UNPRUNED:
            found[row["network"], row["sparsity"]][Run(row["method"], row["solved"])][row["seed"]] = row
    return {level: dict(runs) for level, runs in sorted(found.items())}


def drop(row: Row, stage: str = "finetuned") -> float:
    """Return the points of test accuracy below the dense network."""
    return float(100 * (row["accuracy"]["dense"]["test"] - row["accuracy"][stage]["test"]))


def before_training(row: Row) -> float:
    """Return the drop before the training, after re-solving if there was any."""
    return drop(row, "pruned" if row["solved"] == "masked" else "reconstructed")


def validation(row: Row) -> float:
    """Return the validation accuracy after training, by which configurations are chosen."""
    return float(row["accuracy"]["finetuned"]["validation"])


def runs_of(names: Iterable[str], ways: Iterable[str]) -> list[Run]:
    """Return the runs of methods, each re-solved in some ways."""
    return [Run(name, solved) for name, solved in product(names, ways)]


def sides() -> dict[str, tuple[list[Run], list[Run]]]:
    """Return what the claims compare, by the text of the comparison."""
    magnitude, weighted, gradient = (runs_of(strategies(signal), ["masked"]) for signal in SIGNALS)
    every = [*magnitude, *weighted, *gradient]
    published = runs_of(BASELINES, ["masked"])
    return {
        "(a) strategies x signals, against MAG, SNIP, GraSP": (
            every,
            runs_of(PAPERS, ["masked"]),
        ),
        "strategies x signals, against all criteria": (every, published),
        "(b) magnitude, against product": (magnitude, weighted),
        "(b) magnitude, against gradient": (magnitude, gradient),
        "(c) ours, re-solved, against all criteria as published": (runs_of(OURS, RESOLVED), published),
        "(c) ours, re-solved, against all criteria, re-solved": (
            runs_of(OURS, RESOLVED),
            runs_of(BASELINES, RESOLVED),
        ),
        "joint, against layer-wise; ours": (runs_of(OURS, ["joint"]), runs_of(OURS, ["layer-wise"])),
        "criteria, re-solved, against the same as published": (runs_of(BASELINES, RESOLVED), published),
    }


def chosen(found: Found, runs: Sequence[Run]) -> tuple[Run, BySeed] | None:
    """Return the run with the best mean validation accuracy, with its rows by seed; the first of equals.

    None if a run was not measured, or not with the seeds of the others: then nothing can be chosen among them.
    """
    members = {run: found.get(run, {}) for run in runs}
    if not all(members.values()) or len({frozenset(by_seed) for by_seed in members.values()}) > 1:
        return None
    return max(members.items(), key=lambda item: statistics.fmean(map(validation, item[1].values())))


def networks_table(rows: Sequence[Row]) -> str:
    """Return the accuracy of the dense networks, and their drop after the same training without masks."""
    lines = []
    for network in SPARSITIES:
        mine = [row for row in rows if row["network"] == network]
        if not mine:
            continue
        dense = 100 * mine[0]["accuracy"]["dense"]["test"]
        unpruned = [drop(row) for row in mine if row["method"] == UNPRUNED]
        machines = sorted({row["device"] for row in mine})
        lines.append(
            [
                TITLES[network],
                f"{dense:.2f}",
                spread(unpruned) if unpruned else "",
                str(len({row["seed"] for row in mine})),
                str(len(mine)),
                ", ".join(machines),
            ]
        )
    headings = ["network", "dense (%)", "drop if trained unpruned", "seeds", "runs", "measured on"]
    return table_of(headings, lines) if lines else NOTHING


def network_table(levels: Mapping[Level, Found], network: str) -> str:
    """Return the drop of each method of a network, before and after training, at each sparsity."""
    at = {sparsity: found for (name, sparsity), found in levels.items() if name == network}
    lines = []
    for label, solved, members in _lines():
        cells = [cell for found in at.values() for cell in _cells(found, runs_of(members, [solved]), label)]
        if any(cells):
            lines.append([label, solved, *cells])
    headings = [f"{100 * sparsity:.0f} %, {when}" for sparsity in at for when in ("before", "after")]
    return table_of(["method", "weights", *headings], lines) if lines else NOTHING


_CHOSEN, _MEAN = "chosen on validation", "mean"


def _lines() -> Iterator[tuple[str, str, list[str]]]:
    """Yield the lines of a network's table: a label, how weights are re-solved, and the methods of the line."""
    for name, solved in product((*BASELINES, *OURS), SOLVED):
        yield name, solved, [name]
    for signal, solved, which in product(SIGNALS, SOLVED, (_MEAN, _CHOSEN)):
        yield f"{signal}, ten strategies, {which}", solved, list(strategies(signal))


def _cells(found: Found, runs: Sequence[Run], label: str) -> tuple[str, str]:
    """Return the drops before and after training as text; empty unless all runs were measured with equal seeds."""
    best = chosen(found, runs)
    if best is None:
        return "", ""
    members = [best[1]] if label.endswith(_CHOSEN) else [found[run] for run in runs]
    seeds = sorted(members[0])
    before, after = (
        [statistics.fmean(of(by_seed[seed]) for by_seed in members) for seed in seeds] for of in (before_training, drop)
    )
    return spread(before), spread(after)


def claims_table(levels: Mapping[Level, Found]) -> str:
    """Return the comparisons: means of paired differences with their intervals, and ratios of mean drops."""
    lines = []
    for (network, sparsity), found in levels.items():
        for title, (one, other) in sides().items():
            ours, theirs = chosen(found, one), chosen(found, other)
            seeds = sorted(ours[1].keys() & theirs[1].keys()) if ours and theirs else []
            if not ours or not theirs or not seeds:
                continue
            pairs = [(drop(ours[1][seed]), drop(theirs[1][seed])) for seed in seeds]
            mine, yours = (statistics.fmean(values) for values in zip(*pairs, strict=True))
            ratio = f"{mine / yours:.2f}" if yours > 0 else ""
            better = difference([b - a for a, b in pairs])
            picked, against = (_name(run) for run in (ours[0], theirs[0]))
            subject = f"{TITLES[network]}, {100 * sparsity:.0f} %"
            lines.append(
                [subject, title, f"{mine:.2f}", f"{yours:.2f}", ratio, better, str(len(pairs)), picked, against]
            )
    numbers = ["drop", "other's drop", "ratio", "better by (95 %)", "seeds"]
    headings = ["network, pruned", "comparison", *numbers, "chosen", "against"]
    return table_of(headings, lines) if lines else NOTHING


def _name(run: Run) -> str:
    return run.method if run.solved == "masked" else f"{run.method}; {run.solved}"


def signals_table(levels: Mapping[Level, Found]) -> str:
    """Return the drop of each signal: the mean of its strategies, and the one chosen on validation."""
    lines = []
    for (network, sparsity), found in levels.items():
        for signal in SIGNALS:
            runs = runs_of(strategies(signal), ["masked"])
            cells = [_cells(found, runs, which)[1] for which in (_MEAN, _CHOSEN)]
            if all(cells):
                lines.append([f"{TITLES[network]}, {100 * sparsity:.0f} %", signal, *cells])
    return table_of(["network, pruned", "signal", "mean of strategies", _CHOSEN], lines) if lines else NOTHING


_KINDS = {
    "MAG, SNIP, GraSP": (PAPERS, ["masked"], "#7F7F7F"),
    "LAMP, ERK, block Fisher": (("LAMP", "ERK", "block Fisher"), ["masked"], "#000000"),
    "the ten strategies": (None, ["masked"], "#0072B2"),
    "criteria, re-solved": (tuple(BASELINES), RESOLVED, "#E69F00"),
    "the ten strategies, re-solved": (None, RESOLVED, "#56B4E9"),
    "ours, re-solved": (tuple(OURS), RESOLVED, "#D55E00"),
}


def _kinds() -> Iterator[tuple[str, list[Run], str]]:
    """Yield the kinds of runs in the pictures: a label, the runs and a colour."""
    every = [name for signal in SIGNALS for name in strategies(signal)]
    for label, (names, ways, colour) in _KINDS.items():
        yield label, runs_of(every if names is None else names, ways), colour


def draw(levels: Mapping[Level, Found], path: Path) -> None:
    """Draw the drop of every run: a panel per network and sparsity, a line per kind, a dot per run and seed."""
    from matplotlib.figure import Figure

    if not levels:
        return
    measured = {run for found in levels.values() for run in found}
    kinds = [kind for kind in _kinds() if measured & set(kind[1])]
    figure = Figure(figsize=(max(8.0, 1.5 + 3.6 * len(levels)), 1.2 + 0.4 * len(kinds)), layout="constrained")
    axes = figure.subplots(1, len(levels), squeeze=False, sharey=True)[0]
    for axis, ((network, sparsity), found) in zip(axes, levels.items(), strict=True):
        for height, (_, runs, colour) in enumerate(kinds):
            values = [drop(row) for run in runs for row in found.get(run, {}).values()]
            axis.scatter(values, [height] * len(values), s=16, color=colour, alpha=0.5, linewidths=0)
            if best := chosen(found, runs):
                mean = statistics.fmean(map(drop, best[1].values()))
                axis.scatter([mean], [height], s=110, color="black", marker="|", linewidths=2)
        axis.set_title(f"{TITLES[network]}, {100 * sparsity:.0f} % pruned")
        axis.set_xscale("symlog", linthresh=2, linscale=0.7)
        ticks = (0, 1, 2, 5, 10, 20, 50)
        axis.set_xticks(ticks, list(map(str, ticks)))
        axis.grid(alpha=0.25, axis="x")
    axes[0].set_yticks(range(len(kinds)), [label for label, *_ in kinds])
    axes[0].set_ylim(len(kinds) - 0.5, -0.5)  # the first line on top
    figure.supxlabel(
        "points of test accuracy lost after training, a dot per run; | is the mean of the choice on validation", size=10
    )
    figure.savefig(path, dpi=110)
