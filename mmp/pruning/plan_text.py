"""A plan as text: a title, a table of layers, a table of strategies, and a note on the sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmp.pruning.patterns import UNSTRUCTURED, Channels
from mmp.pruning.sizes import MEGABYTE

if TYPE_CHECKING:
    from mmp.pruning.layers.layer import Layer
    from mmp.pruning.patterns import Pattern
    from mmp.pruning.plan import Plan

_LAYER_HEADINGS = ("layer", "role", "stage", "weights", "range (%)")
_GROUP_HEADINGS = ("group", "role", "stage", "weights", "range (%)", "sets")
_STRATEGY_HEADINGS = ("strategy", "sparsity (%)", "of all parameters (%)", "parameters left", "MB")
_CHANNEL_HEADINGS = ("strategy", "parameters removed (%)", "parameters left", "multiply-adds left (%)", "MB")
_WORDS = frozenset({"layer", "group", "role", "pattern", "strategy"})


def as_text(plan: Plan) -> str:
    """Return a plan as text: a title, a table of layers, a table of strategies, and a note on the sizes."""
    tables = [aligned(*layer_table(plan)), aligned(*strategy_table(plan))]
    return "\n\n".join([title_of(plan), *tables, note_of(plan)]) + "\n"


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with columns as wide as their cells: words aligned left, numbers aligned right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if heading in _WORDS else cell.rjust(width)
            for cell, width, heading in zip(cells, widths, headings, strict=True)
        )
        for cells in (headings, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def layer_table(plan: Plan) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the headings and the rows of the table of layers, or of groups of channels; ranges in percent."""
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
    if isinstance(plan.pattern, Channels):
        return _GROUP_HEADINGS, [[*row, str(layer.shape[0])] for row, layer in zip(rows, plan.layers, strict=True)]
    if plan.pattern == UNSTRUCTURED:
        return _LAYER_HEADINGS, rows
    return (*_LAYER_HEADINGS, "pattern"), [
        [*row, _pattern_of(plan, plan.pattern, layer)] for row, layer in zip(rows, plan.layers, strict=True)
    ]


def _pattern_of(plan: Plan, pattern: Pattern, layer: Layer) -> str:
    """Return the pattern of a layer, or the reason why it has none."""
    if not pattern.fits(layer):
        return "no: shape"
    taken, strategies = sum(plan.patterned(layer, name) for name in plan.sparsities), len(plan.sparsities)
    if not taken:
        return "no: range"
    return str(pattern) if taken == strategies else f"{pattern} in {taken} of {strategies}"


def strategy_table(plan: Plan) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the headings and the rows of the table of strategies; sparsities in percent, sizes in 10^6 bytes."""
    if isinstance(plan.pattern, Channels):
        return _CHANNEL_HEADINGS, [_channel_row(plan, name) for name in plan.by_sparsity()]
    rows = []
    for name in plan.by_sparsity():
        facts = plan.summary(name)
        sparsities = [f"{100 * facts[key]:.2f}" for key in ("sparsity", "sparsity_all")]
        rows.append([name, *sparsities, f"{facts['parameters_left']:,}", f"{facts['bytes'] / MEGABYTE:.2f}"])
        rows[-1] += [f"{100 * facts['patterned']:.2f}"] if "patterned" in facts else []
    return (*_STRATEGY_HEADINGS, *([] if plan.pattern == UNSTRUCTURED else [f"in {plan.pattern} (%)"])), rows


def _channel_row(plan: Plan, name: str) -> list[str]:
    facts = plan.summary(name)
    removed, multiply_adds = (f"{100 * facts[key]:.2f}" for key in ("sparsity_all", "multiply_adds"))
    return [name, removed, f"{facts['parameters_left']:,}", multiply_adds, f"{facts['bytes'] / MEGABYTE:.2f}"]


def title_of(plan: Plan) -> str:
    """Return the line above the tables: the model, its parameters and its layers, ranges, budget and pattern."""
    what = f"{plan.sizes.weights:,} prunable in {len(plan.layers)} layers"
    if isinstance(plan.pattern, Channels):
        what = f"{len(plan.layers)} groups of channels"
    return f"{plan.model}: {plan.parameters:,} parameters, {what}; {plan.table}"


def note_of(plan: Plan) -> str:
    """Return the lines below the tables, on the sizes and on the parameters outside of all layers."""
    if isinstance(plan.pattern, Channels):
        return (
            "A group is named after the first weight that writes its channels. A set of its channels is removed as a "
            f"whole, and layers keep multiples of {plan.pattern.multiple} channels.\n"
            "Weights: those that write or read the group's channels. A weight between two groups is counted in both.\n"
            "MB (10^6 bytes): all tensors of the smaller network. Multiply-adds: of layers with weights. "
            f"Dense: {plan.sizes.dense / MEGABYTE:.2f} MB."
        )
    return (
        "MB (10^6 bytes): kept weights, a mask of one bit per prunable weight, and all other tensors. "
        f"Dense: {plan.sizes.dense / MEGABYTE:.2f} MB.\n{plan.coverage.describe()}"
    )
