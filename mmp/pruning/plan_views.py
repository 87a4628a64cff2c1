"""Views of a plan: text, JSON, Markdown, CSV, and a picture."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmp.files import write_atomically
from mmp.markdown import table_of
from mmp.pruning.patterns import Channels
from mmp.pruning.plan_text import as_text, layer_table, note_of, strategy_table, title_of

if TYPE_CHECKING:
    from mmp.pruning.plan import Plan


def render(plan: Plan, style: str) -> None:
    """Write a plan to standard output.

    Args:
        plan: The plan.
        style: ``table`` (text), ``json``, ``md`` (Markdown) or ``csv``.
    """
    views: dict[str, Callable[[Plan], str]] = {
        "table": as_text,
        "json": lambda plan: json.dumps(plan.to_dict(), indent=1) + "\n",
        "md": as_markdown,
        "csv": as_csv,
    }
    sys.stdout.write(views[style](plan))


def as_markdown(plan: Plan) -> str:
    """Return a plan as Markdown: the tables of layers and of strategies, with a title and a note on the sizes."""
    parts = [f"**{title_of(plan)}**", table_of(*layer_table(plan)), table_of(*strategy_table(plan)), note_of(plan)]
    return "\n\n".join(parts) + "\n"


def as_csv(plan: Plan) -> str:
    """Return a plan as CSV: one row per layer, with its range and its sparsity under every strategy, as fractions.

    With ``pattern=channels``, a row is a group of channels, with its number of sets.
    Weights that no layer covers follow, one row per reason, with the role ``none``, the reason in place of a name, and
    no range.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    strategies = plan.by_sparsity()
    channels = isinstance(plan.pattern, Channels)
    headings = ["group" if channels else "layer", "role", "stage", "weights", *["sets"] * channels, "lo", "hi"]
    writer.writerow([*headings, *strategies])
    for layer in plan.layers:
        allowed = plan.ranges[layer.name]
        sparsities = [plan.sparsities[name][layer.name] for name in strategies]
        facts = [layer.name, layer.role, layer.stage, layer.size, *[layer.shape[0]] * channels]
        writer.writerow([*facts, allowed.lo, allowed.hi, *sparsities])
    for part in plan.coverage.missed:
        reason = f"{part.reason.text}, e.g. {part.example}"
        writer.writerow([reason, "none", "", part.parameters, *[""] * (len(headings) - 4 + len(strategies))])
    return text.getvalue()


def draw_plan(plan: Plan, path: Path) -> None:
    """Draw every layer's range beside a heat map of its sparsity under every strategy, as PNG.

    With ``pattern=channels``, these are the groups of channels, and a strategy's share is that of all parameters.
    Observed ranges are drawn below the ranges of the rule table.

    Args:
        plan: The plan.
        path: The PNG file; written atomically.

    Raises:
        MmpError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    strategies, count = plan.by_sparsity(), len(plan.layers)
    figure = Figure(figsize=(13, 1.6 + 0.2 * max(count, 8)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.6))
    _draw_ranges(left, plan)
    names = [f"{layer.name.removesuffix('.weight')}  ({layer.role})" for layer in plan.layers]
    left.set_yticks(range(count), names, fontsize=8)
    left.set_ylim(count - 0.5, -0.5)

    values = [[100 * plan.sparsities[name][layer.name] for name in strategies] for layer in plan.layers]
    image = right.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=100)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            colour = "white" if value < 60 else "black"
            right.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    channels = isinstance(plan.pattern, Channels)
    total = "sparsity_all" if channels else "sparsity"  # what a budget sets
    headings = [f"{name}\n{100 * plan.summary(name)[total]:.1f} %" for name in strategies]
    right.set_xticks(range(len(strategies)), headings, fontsize=8, rotation=40, ha="left", rotation_mode="anchor")
    right.xaxis.tick_top()
    right.tick_params(length=0)
    label = "channels removed (%)" if channels else "sparsity of the layer (%)"
    figure.colorbar(image, ax=right, label=label, fraction=0.03, pad=0.01)
    figure.suptitle(title_of(plan), fontsize=11, x=0.01, ha="left")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))


def _draw_ranges(axis: Any, plan: Plan) -> None:
    shown = [("range", plan.ranges, "#0072B2", 0.0)]
    if plan.rules is not None:
        shown = [("rules", plan.rules, "0.55", -0.18), ("observed", plan.ranges, "#D55E00", 0.18)]
    height = 0.5 if plan.rules is None else 0.3
    for label, ranges, colour, shift in shown:
        rows = [row + shift for row in range(len(plan.layers))]
        spans = [ranges[layer.name] for layer in plan.layers]
        starts, widths = [100 * span.lo for span in spans], [100 * (span.hi - span.lo) for span in spans]
        axis.barh(rows, widths, left=starts, height=height, color=colour, label=label)
        axis.scatter(starts, rows, s=8, color=colour, marker="|")  # makes a range of width zero visible
    axis.set_xlim(0, 100)
    whole = isinstance(plan.pattern, Channels)
    axis.set_xlabel("channels that may be removed (%)" if whole else "sparsity allowed (%)")
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    if plan.rules is not None:
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8)
