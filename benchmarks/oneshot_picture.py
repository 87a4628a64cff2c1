"""Draws the picture of docs/oneshot.md from the rows of the one-shot benchmark."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.oneshot_methods import label_of
from benchmarks.oneshot_networks import NETWORKS
from benchmarks.oneshot_tables import COLUMNS, Cell, accuracies, by_cell, by_number, lines_of, percent, table_rows
from benchmarks.row_files import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path("docs/images/oneshot.png")
COLOURS = {"masked": "0.45", "layer-wise": "#0072B2", "brief": "#E69F00", "joint": "#D55E00"}
MARKERS = ("o", "s", "^", "D")  # of the networks
REFERENCE = "MAG"

Line = tuple[str, str]  # a method, and masked or a way to re-solve


def draw(rows: Sequence[Row]) -> None:
    """Draw accuracy against sparsity for every network, and against the number of pictures and the seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [partial(draw_sparsities, network=network) for network in NETWORKS if table_rows(rows, network)]
    panels += [partial(panel) for key, panel in OF_NUMBERS.items() if by_number(rows, key)]
    columns = min(3, max(1, len(panels)))
    lines = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(5.5 * columns, 3.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, panel in zip_longest(figure.subplots(lines, columns, squeeze=False).flat, panels):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylabel("test accuracy, %")
        axis.set_visible(panel is not None)
        if panel:
            panel(axis, rows)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=150, metadata={"Software": None})


def best_lines(rows: Sequence[Row], network: str) -> list[Line]:
    """Return the lines to draw for a network: magnitude, and the best on validation pictures, in every column.

    A line must have all sparsities that the network was measured at in this column.
    """
    found = by_cell(table_rows(rows, network))
    lines = []
    for column in COLUMNS:
        sparsities = sparsities_of(found, column)
        every = {
            method: [accuracies(found, method, column, sparsity, "validation") for sparsity in sparsities]
            for method in lines_of()
        }
        means = {method: statistics.fmean(map(statistics.fmean, v)) for method, v in every.items() if v and all(v)}
        best = max(means, key=lambda method: means[method], default=None)
        lines += [(method, column) for method in dict.fromkeys((REFERENCE, best)) if method in means]
    return lines


def sparsities_of(found: Mapping[Cell, object], column: str) -> list[float]:
    """Return the sparsities that were measured in a column, in order."""
    column = "layer-wise" if column == "masked" else column
    return sorted({sparsity for _, solved, sparsity in found if solved == column})


def draw_sparsities(axis: Axes, rows: Sequence[Row], network: str) -> None:
    """Draw a network's accuracy against sparsity."""
    mine = table_rows(rows, network)
    found = by_cell(mine)
    for method, column in best_lines(rows, network):
        points = {100 * s: accuracies(found, method, column, s) for s in sparsities_of(found, column)}
        style = ":" if method == REFERENCE else "-"
        _line(axis, points, color=COLOURS[column], label=f"{method}, {label_of(column)}", linestyle=style, marker="o")
    axis.axhline(percent(mine[0], "dense"), color="0.7", linewidth=0.8)
    axis.set_title(network, fontsize=10)
    axis.set_xlabel("weights that are pruned, %")
    axis.legend(frameon=False, fontsize=7)


def draw_pictures(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw accuracy against the number of calibration pictures."""
    for (network, sparsity, solved), numbers in by_number(rows, "images").items():
        points: dict[float, list[float]] = {number or 0: _reached(found) for number, found in numbers.items()}
        label = f"{network}, {100 * sparsity:.0f} %, {label_of(solved)}"
        _line(axis, points, color=COLOURS[solved], label=label, marker=_marker(network))
    _logarithmic(axis, "calibration pictures")


def draw_seconds(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw accuracy against the seconds of re-solving, a point for each number of steps, a line for each machine."""
    for (network, sparsity, solved), numbers in by_number(rows, "steps").items():
        for device in dict.fromkeys(row["device"] for found in numbers.values() for row in found):
            mine = [[row for row in found if row["device"] == device] for found in numbers.values()]
            points = {
                statistics.median(row["seconds"]["reconstruct"] for row in found): _reached(found)
                for found in mine
                if found
            }
            label = f"{network}, {100 * sparsity:.0f} %, {label_of(solved)}, {device}"
            _line(axis, dict(sorted(points.items())), color=COLOURS[solved], label=label, marker=_marker(network))
    _logarithmic(axis, "seconds of re-solving")


OF_NUMBERS = {"images": draw_pictures, "steps": draw_seconds}


def _reached(rows: Sequence[Row]) -> list[float]:
    return [percent(row, "reconstructed") for row in rows]


def _marker(network: str) -> str:
    return MARKERS[[*NETWORKS].index(network)]


def _line(axis: Axes, points: Mapping[float, Sequence[float]], **style: Any) -> None:
    """Draw the means of points with their standard deviations."""
    means = [statistics.fmean(values) for values in points.values()]
    spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in points.values()]
    axis.errorbar([*points], means, yerr=spreads, markersize=4, linewidth=1.4, elinewidth=1, capsize=2, **style)


def _logarithmic(axis: Axes, label: str) -> None:
    """Draw the horizontal axis with plain numbers at powers of two."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.set_xlabel(label)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=7)
