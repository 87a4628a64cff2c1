"""The tables of docs/oneshot.md, made from the rows of the one-shot benchmark."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from benchmarks.oneshot_methods import STUDIED, is_strategy, label_of, methods
from benchmarks.oneshot_networks import NETWORKS
from benchmarks.row_files import Row
from benchmarks.tables import NOTHING, spread, threads_of
from mmp.markdown import table_of

TUNED = ("brief", "joint")
COLUMNS = ("masked", "layer-wise", *TUNED)
MEAN, CHOSEN = "strategies, mean", "strategies, best on validation"

Cell = tuple[str, str, float]  # a method, a way to re-solve, a share of the weights
Setting = tuple[str, float, str]  # a network, a share of its weights, a way to re-solve


def table_rows(rows: Iterable[Row], network: str) -> list[Row]:
    """Return the rows of a network's table: with all its calibration pictures, and as many steps as configured."""
    return [
        row
        for row in rows
        if row["network"] == network and row["images"] == NETWORKS[network].images[-1] and row["steps"] is None
    ]


def accuracy_table(rows: Iterable[Row], network: str) -> str:
    """Return the table of a network: test accuracy in percent, mean and standard deviation over the seeds.

    Of the strategies there are two lines: their mean, and the one with the best mean accuracy on validation pictures.
    """
    mine = table_rows(rows, network)
    if not mine:
        return NOTHING
    found, sparsities = by_cell(mine), NETWORKS[network].sparsities
    dense = spread(percent(row, "dense") for row in mine[:1])
    lines = [["dense", "", *([dense] * len(sparsities))]]
    for method, column in product(lines_of(), COLUMNS):
        every = [accuracies(found, method, column, sparsity) for sparsity in sparsities]
        if any(every):
            lines.append([method, label_of(column), *(spread(values) if values else "" for values in every)])
    return table_of(["method", "weights", *(f"{100 * sparsity:.0f} %" for sparsity in sparsities)], lines)


def lines_of() -> list[str]:
    """Return the names of the table's lines."""
    return [*(method for method in methods() if not is_strategy(method)), MEAN, CHOSEN]


def by_cell(rows: Iterable[Row]) -> dict[Cell, list[Row]]:
    """Return the rows of each method, way to re-solve and sparsity."""
    found: dict[Cell, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["method"], row["solved"], row["sparsity"]].append(row)
    return dict(found)


def accuracies(
    found: Mapping[Cell, Sequence[Row]], method: str, column: str, sparsity: float, split: str = "test"
) -> list[float]:
    """Return the accuracies of a line of the table at one sparsity, one for each seed, in percent."""
    solved, stage = ("layer-wise", "pruned") if column == "masked" else (column, "reconstructed")
    if method not in (MEAN, CHOSEN):
        return [percent(row, stage, split) for row in found.get((method, solved, sparsity), ())]
    every = strategies(found, solved, sparsity)
    if not every:
        return []
    if method == CHOSEN:
        best = max(every, key=lambda rows: statistics.fmean(percent(row, stage, "validation") for row in rows))
        return [percent(row, stage, split) for row in best]
    by_seed: dict[int, list[float]] = defaultdict(list)
    for row in (row for rows in every for row in rows):
        by_seed[row["seed"]].append(percent(row, stage, split))
    return [statistics.fmean(values) for values in by_seed.values()]


def strategies(found: Mapping[Cell, Sequence[Row]], solved: str, sparsity: float) -> list[Sequence[Row]]:
    """Return the rows of each strategy, if all strategies were measured with as many seeds; else nothing."""
    names = [method for method in methods() if is_strategy(method)]
    every = [found.get((name, solved, sparsity), ()) for name in names]
    return every if len({len(rows) for rows in every}) == 1 and every[0] else []


def percent(row: Row, stage: str, split: str = "test") -> float:
    """Return an accuracy in percent."""
    return float(100 * row["accuracy"][stage][split])


def gain_table(rows: Sequence[Row]) -> str:
    """Return the table of the points that joint tuning adds to layer-wise solutions, over the methods.

    A method counts at a sparsity with the seeds that both were measured with.
    """
    lines = []
    for network, tuned in product(NETWORKS, TUNED):
        found = by_cell(table_rows(rows, network))
        for sparsity in NETWORKS[network].sparsities:
            gains = [gain for method in methods() for gain in _gains(found, method, tuned, sparsity)]
            if gains:
                points = (f"{value:+.2f}" for value in (statistics.fmean(gains), min(gains), max(gains)))
                lost = f"{sum(gain < 0 for gain in gains)} of {len(gains)}"
                lines.append([network, label_of(tuned), f"{100 * sparsity:.0f} %", *points, lost])
    headings = ["network", "tuning", "pruned", "points gained, mean", "least", "most", "methods that lose"]
    return table_of(headings, lines) if lines else NOTHING


def _gains(found: Mapping[Cell, Sequence[Row]], method: str, tuned: str, sparsity: float) -> list[float]:
    """Return the mean gain of a method over the seeds that were measured both ways, if there are any."""
    sides = [
        {row["seed"]: percent(row, "reconstructed") for row in found.get((method, solved, sparsity), ())}
        for solved in ("layer-wise", tuned)
    ]
    seeds = sides[0].keys() & sides[1].keys()
    return [statistics.fmean(sides[1][seed] - sides[0][seed] for seed in seeds)] if seeds else []


def by_number(rows: Iterable[Row], key: str) -> dict[Setting, dict[int | None, list[Row]]]:
    """Return the rows of the studied method by setting, then by the number of pictures, or of steps.

    A network and a sparsity that were measured with one number only are left out.

    Args:
        rows: The rows.
        key: ``images`` or ``steps``. The other of the two has its usual number.
    """
    found: dict[Setting, dict[int | None, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        usual = row["steps"] is None if key == "images" else row["images"] == NETWORKS[row["network"]].images[-1]
        if row["method"] == STUDIED and usual:
            found[row["network"], row["sparsity"], row["solved"]][row[key]].append(row)
    several = {setting[:2] for setting, numbers in found.items() if len(numbers) > 1}
    return {
        setting: dict(sorted(numbers.items(), key=lambda item: item[0] or 0))
        for setting, numbers in sorted(found.items())
        if setting[:2] in several
    }


def pictures_table(rows: Iterable[Row]) -> str:
    """Return the table of accuracies after re-solving with fewer calibration pictures."""
    found = by_number(rows, "images")
    if not found:
        return NOTHING
    counts = sorted({count or 0 for numbers in found.values() for count in numbers})
    lines = []
    for (network, sparsity, solved), numbers in found.items():
        cells = (spread(percent(row, "reconstructed") for row in numbers[n]) if n in numbers else "" for n in counts)
        lines.append([network, f"{100 * sparsity:.0f} %", label_of(solved), *cells])
    return table_of(["network", "pruned", "weights", *(f"{count:,}" for count in counts)], lines)


def seconds_table(rows: Iterable[Row]) -> str:
    """Return the table of seconds: of scores and of a search if the run computed them, and of re-solving.

    Runs with other numbers of steps than configured are left out.
    """
    found: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for row in (row for row in rows if row["steps"] is None):
        where = (row["network"], row["images"], f"{row['device']}, {threads_of(row['threads'])}")
        found[*where, label_of(row["solved"])].append(row["seconds"]["reconstruct"])
        if row["method"] == STUDIED and not row["cached"]["scores"]:
            found[*where, f"scores of {STUDIED}"].append(row["seconds"]["scores"])
        if row["cached"]["search"] is False:
            found[*where, f"search, {label_of(row['solved'])}"].append(row["seconds"]["ranges"])
    if not found:
        return NOTHING
    lines = [
        [
            *map(str, key),
            f"{statistics.median(values):.1f}",
            f"{min(values):.1f} to {max(values):.1f}",
            str(len(values)),
        ]
        for key, values in sorted(found.items(), key=str)
    ]
    return table_of(["network", "pictures", "machine", "step", "seconds, median", "spread", "runs"], lines)
