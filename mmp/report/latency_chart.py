"""The picture of measured latencies: accuracy against latency as a share of the dense model's, a panel per target."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmp.files import write_atomically
from mmp.report.charts import colours_of
from mmp.report.groups import Group, pareto_front
from mmp.report.results import Run
from mmp.report.timings import Timing

_MOST_NAMES = 14  # labels that fit into a panel


def draw_latencies(groups: Sequence[Group], path: Path) -> None:
    """Draw test accuracy against the latency of exports: one point per file, with the quartiles of its latency.

    Args:
        groups: Completed runs by model and data set, some of them with timings.
        path: The PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (group, target)
        for group in groups
        for target in sorted({timing.target for run in group.runs for timing in run.timings})
    ]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6 * columns, 4.6 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    colours = colours_of(groups)
    for axis, (group, target) in zip(axes, panels, strict=False):
        _draw_panel(axis, group, target, colours)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    by_name = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        by_name.values(), by_name.keys(), loc="outside lower center", ncols=min(len(by_name), 5), frameon=False
    )
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))


def _draw_panel(axis: Any, group: Group, target: str, colours: dict[str, str]) -> None:
    points = [(run, timing) for run in group.runs for timing in run.timings if timing.target == target]
    axis.axhline(
        100 * statistics.fmean(group.dense("test")), color="0.35", linewidth=1.2, linestyle="--", label="dense"
    )
    axis.axvline(1, color="0.35", linewidth=1.2, linestyle="--")
    for signal in sorted({run.signal for run, _ in points}):
        own = [(run, timing) for run, timing in points if run.signal == signal]
        x = [timing.latency for _, timing in own]
        bars = [[t.latency - t.lower for _, t in own], [t.upper - t.latency for _, t in own]]
        y = [100 * run.test for run, _ in own]
        axis.errorbar(x, y, xerr=bars, fmt="o", ms=5.8, mew=0, color=colours[signal], elinewidth=0.8, label=signal)
    efficient = pareto_front([(-timing.latency, run.validation - run.dense_validation) for run, timing in points])
    rings = [point for point, good in zip(points, efficient, strict=True) if good]
    axis.scatter(
        [timing.latency for _, timing in rings],
        [100 * run.test for run, _ in rings],
        s=120, facecolors="none", edgecolors="black", linewidths=1.2, label="Pareto-efficient (chosen on validation)",
    )  # fmt: skip
    _label(axis, points)
    axis.set_title(f"{group.title}\n{target}", fontsize=11, loc="left", parse_math=False)
    axis.set_xlabel("latency of one image (share of the dense model's)")
    axis.set_ylabel("test accuracy (%)")
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _label(axis: Any, points: Sequence[tuple[Run, Timing]]) -> None:
    """Write the name of its strategy at each point, if there are few points."""
    look = {"textcoords": "offset points", "fontsize": 8, "rotation": 40, "rotation_mode": "anchor"}
    for run, timing in points if len(points) <= _MOST_NAMES else ():
        axis.annotate(run.strategy, (timing.latency, 100 * run.test), xytext=(5, 5), parse_math=False, **look)
