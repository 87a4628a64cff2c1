"""How a plan is shown: tables for people, JSON, Markdown and CSV for other programs, and a heat map."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mmp.files import write_atomically
from mmp.markdown import table_of
from mmp.patterns import UNSTRUCTURED
from mmp.sizes import MEGABYTE

if TYPE_CHECKING:
    from mmp.layers import Layer
    from mmp.plan import Plan

_LAYER_HEADINGS = ("layer", "role", "stage", "weights", "range (%)")
_WORDS = frozenset({"layer", "role", "pattern", "strategy"})
_STRATEGY_HEADINGS = ("strategy", "sparsity (%)", "of all parameters (%)", "parameters left", "MB")


def render(plan: Plan, style: str) -> None:
    """Print a plan to standard output as ``table``, ``json``, ``md`` or ``csv``."""
    views: dict[str, Callable[[Plan], str]] = {
        "table": as_text,
        "json": lambda shown: json.dumps(shown.to_dict(), indent=1) + "\n",
        "md": as_markdown,
        "csv": as_csv,
    }
    sys.stdout.write(views[style](plan))


def as_text(plan: Plan) -> str:
    """Return the two tables as text, at least as wide as they need."""
    console = Console(file=io.StringIO(), width=max(Console().width, 110))
    console.print(_title(plan), highlight=False)
    for headings, rows in (_layer_table(plan), _strategy_table(plan)):
        table = Table(*headings, box=None, header_style="bold", pad_edge=False)
        for column in table.columns:
            column.justify = "left" if column.header in _WORDS else "right"
        for row in rows:
            table.add_row(*row)
        console.print("", table)
    console.print("", _note(plan), sep="\n", highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def as_markdown(plan: Plan) -> str:
    """Return the two tables as Markdown."""
    parts = [f"**{_title(plan)}**", table_of(*_layer_table(plan)), table_of(*_strategy_table(plan)), _note(plan)]
    return "\n\n".join(parts) + "\n"


def as_csv(plan: Plan) -> str:
    """Return one line per layer, with its sparsity under every strategy."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    strategies = plan.by_sparsity()
    writer.writerow(["layer", "role", "stage", "weights", "lo", "hi", *strategies])
    for layer in plan.layers:
        allowed = plan.ranges[layer.name]
        sparsities = [plan.sparsities[name][layer.name] for name in strategies]
        writer.writerow([layer.name, layer.role, layer.stage, layer.size, allowed.lo, allowed.hi, *sparsities])
    return text.getvalue()


def draw_plan(plan: Plan, path: Path) -> None:
    """Draw every layer's range beside its sparsity under every strategy, as PNG.

    Where ranges were observed, the rule table's range stands above the observed one.

    Args:
        plan: The plan.
        path: Where the PNG goes; written atomically.
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
    headings = [f"{name}\n{100 * plan.summary(name)['sparsity']:.1f} %" for name in strategies]
    right.set_xticks(range(len(strategies)), headings, fontsize=8, rotation=40, ha="left", rotation_mode="anchor")
    right.xaxis.tick_top()
    right.tick_params(length=0)
    figure.colorbar(image, ax=right, label="sparsity of the layer (%)", fraction=0.03, pad=0.01)
    figure.suptitle(_title(plan), fontsize=11, x=0.01, ha="left")
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
        axis.scatter(starts, rows, s=8, color=colour, marker="|")  # a range of width zero is still seen
    axis.set_xlim(0, 100)
    axis.set_xlabel("sparsity allowed (%)")
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    if plan.rules is not None:
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8)


def _layer_table(plan: Plan) -> tuple[tuple[str, ...], list[list[str]]]:
    rows = [
        [
            layer.name,
            layer.role,
            "" if layer.stage is None else str(layer.stage),
            f"{layer.size:,}",
            f"{100 * plan.ranges[layer.name].lo:.1f} - {100 * plan.ranges[layer.name].hi:.1f}",
        ]
        for layer in plan.layers
    ]
    if plan.pattern == UNSTRUCTURED:
        return _LAYER_HEADINGS, rows
    for row, layer in zip(rows, plan.layers, strict=True):
        row.append(_pattern_of(plan, layer))
    return (*_LAYER_HEADINGS, "pattern"), rows


def _pattern_of(plan: Plan, layer: Layer) -> str:
    """Return the pattern of a layer, or why it has none."""
    if not plan.pattern.fits(layer.shape, layer.groups):
        return "no: shape"
    taken, strategies = sum(plan.patterned(layer, name) for name in plan.sparsities), len(plan.sparsities)
    if not taken:
        return "no: range"
    return str(plan.pattern) if taken == strategies else f"{plan.pattern} in {taken} of {strategies}"


def _strategy_table(plan: Plan) -> tuple[tuple[str, ...], list[list[str]]]:
    rows = []
    for name in plan.by_sparsity():
        facts = plan.summary(name)
        sparsities = [f"{100 * facts[key]:.2f}" for key in ("sparsity", "sparsity_all")]
        rows.append([name, *sparsities, f"{facts['parameters_left']:,}", f"{facts['bytes'] / MEGABYTE:.2f}"])
        rows[-1] += [f"{100 * facts['patterned']:.2f}"] if "patterned" in facts else []
    return (*_STRATEGY_HEADINGS, *([] if plan.pattern == UNSTRUCTURED else [f"in {plan.pattern} (%)"])), rows


def _title(plan: Plan) -> str:
    return (
        f"{plan.model}: {plan.parameters:,} parameters, {plan.sizes.weights:,} prunable in {len(plan.layers)} layers; "
        f"{plan.table}"
    )


def _note(plan: Plan) -> str:
    return (
        "MB (10^6 bytes): kept weights, one bit per prunable weight that says where they belong, and all other "
        f"tensors. Dense: {plan.sizes.dense / MEGABYTE:.2f} MB."
    )
