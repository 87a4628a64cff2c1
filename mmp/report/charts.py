"""The picture of a report, accuracy against sparsity as PNG, and the colours of signals in all charts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmp.files import write_atomically
from mmp.report.groups import Configuration, Group

# The palette of Okabe and Ito, which is safe for colour-blind readers. The paper's signals have fixed colours.
_COLOURS = {"magnitude": "#0072B2", "gradient": "#D55E00", "product": "#009E73"}
_OTHERS = (
    "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F", "#6A3D9A", "#B15928", "#F0E442", "#1B4F72", "#B2DF8A",
    "#FB9A99", "#000000",
)  # fmt: skip
_MOST_NAMES = 14  # labels that fit into a panel
_PANELS = (
    ("validation", "validation accuracy: used to choose"),
    ("test", "test accuracy: only reported"),
)


def colours_of(groups: Iterable[Group]) -> dict[str, str]:
    """Return the colour of each signal, the same in all charts."""
    signals = sorted({run.signal for group in groups for run in group.runs})
    others = [signal for signal in signals if signal not in _COLOURS]
    extra = {signal: _OTHERS[i % len(_OTHERS)] for i, signal in enumerate(others)}
    return {signal: _COLOURS.get(signal) or extra[signal] for signal in signals}


def front_of(group: Group) -> list[tuple[float, float, str]]:
    """Return the Pareto-efficient points of a group: reduction, validation accuracy, and the strategies there."""
    names: dict[tuple[float, float], list[str]] = {}
    for one in group.configurations:
        if one.efficient:
            key = (round(one.mean("reduction"), 7), round(one.mean("validation"), 7))
            names.setdefault(key, []).append(one.runs[0].strategy)
    return [(x, y, " = ".join(dict.fromkeys(strategies))) for (x, y), strategies in sorted(names.items())]


def draw_picture(groups: Sequence[Group], path: Path) -> None:
    """Draw validation and test accuracy against sparsity, or against the share of parameters that is removed.

    There is a row per group, with means and standard deviations over seeds.

    Args:
        groups: Completed runs by model and data set.
        path: The PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = colours_of(groups)
    figure = Figure(figsize=(12, 4.6 * len(groups) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(groups), 2, squeeze=False, sharey="row", sharex="row")
    for row, group in zip(axes, groups, strict=True):
        for axis, (split, title) in zip(row, _PANELS, strict=True):
            _draw_panel(axis, group, split, colours)
            axis.set_title(f"{group.title}\n{title}", fontsize=11, loc="left")
        row[0].set_ylabel("accuracy (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = min(len(labels), 8)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))


def _draw_panel(axis: Any, group: Group, split: str, colours: dict[str, str]) -> None:
    _draw_dense(axis, group, split)
    for signal, colour in colours.items():
        members = [one for one in group.configurations if one.runs[0].signal == signal]
        x, y = _coordinates(members, split)
        spreads = [100 * (one.spread(split) or 0.0) for one in members]
        bars = spreads if any(spreads) else None
        axis.errorbar(x, y, bars, fmt="o", ms=5.8, mew=0, color=colour, alpha=0.85, elinewidth=0.8, label=signal)
    x, y = _coordinates([one for one in group.configurations if one.efficient], split)
    ring = {"facecolors": "none", "edgecolors": "black", "linewidths": 1.2}
    axis.scatter(x, y, s=120, label="Pareto-efficient (chosen on validation)", **ring)
    axis.set_ylim(*_limits(group))
    if split == "validation":
        _draw_front(axis, front_of(group))
    removed = "parameters removed (% of all parameters)"
    axis.set_xlabel(removed if group.whole_channels else "sparsity (% of prunable weights)")
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelleft=True)


def _draw_dense(axis: Any, group: Group, split: str) -> None:
    """Draw a line at the mean accuracy of the dense models, and a band of one standard error around it."""
    dense = 100 * statistics.fmean(group.dense(split))
    noise = 100 * group.noise(split)
    axis.axhspan(dense - noise, dense + noise, color="0.5", alpha=0.15, linewidth=0, label="± one standard error")
    axis.axhline(dense, color="0.35", linewidth=1.2, linestyle="--", label="dense")


def _limits(group: Group) -> tuple[float, float]:
    """Return the limits of the vertical axis: all accuracies fit, with room for names below."""
    splits = ("validation", "test", "dense_validation", "dense_test")
    values = [100 * one.mean(what) for one in group.configurations for what in splits]
    reach = max(values) - min(values) or 1.0
    return min(values) - 0.35 * reach, max(values) + 0.08 * reach


def _draw_front(axis: Any, front: Sequence[tuple[float, float, str]]) -> None:
    axis.step([100 * x for x, _, _ in front], [100 * y for _, y, _ in front], where="pre", color="black", linewidth=0.9)
    _label(axis, front)


def _coordinates(configurations: Iterable[Configuration], split: str) -> tuple[list[float], list[float]]:
    points = [(100 * one.mean("reduction"), 100 * one.mean(split)) for one in configurations]
    return [x for x, _ in points], [y for _, y in points]


def _label(axis: Any, front: Sequence[tuple[float, float, str]]) -> None:
    """Write the names of efficient points below all points, with enough room between two names."""
    if len(front) > _MOST_NAMES:
        return
    low, high = axis.get_ylim()
    left, right = axis.get_xlim()
    step = (right - left) / 14
    place = left
    for i, (x, y, name) in enumerate(front):
        room = right - step * (len(front) - i)
        place = min(max(place + step, 100 * x), max(room, place + step))
        axis.annotate(
            name,
            xy=(100 * x, 100 * y),
            xytext=(place, low + 0.2 * (high - low)),
            fontsize=8,
            rotation=55,
            ha="right",
            va="top",
            rotation_mode="anchor",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6, "shrinkB": 6},
        )
