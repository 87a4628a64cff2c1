"""Charts of a report: a picture (matplotlib) and a self-contained interactive page (plotly)."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmp.files import write_atomically

if TYPE_CHECKING:
    from mmp.report import Group, Report
    from mmp.results import Run

# Okabe and Ito's palette, which colour-blind readers can tell apart; the paper's signals always look the same.
_COLOURS = {"magnitude": "#0072B2", "gradient": "#D55E00", "product": "#009E73"}
_OTHERS = (
    "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F", "#6A3D9A", "#B15928", "#F0E442", "#1B4F72", "#B2DF8A",
    "#FB9A99", "#000000",
)  # fmt: skip
_PANELS = (
    ("validation", "validation accuracy: where the choice is made"),
    ("test", "test accuracy: what the choice is worth"),
)


def colours_of(groups: Iterable[Group]) -> dict[str, str]:
    """Return one colour per signal, the same in every chart."""
    signals = sorted({run.signal for group in groups for run in group.runs})
    others = [signal for signal in signals if signal not in _COLOURS]
    extra = {signal: _OTHERS[i % len(_OTHERS)] for i, signal in enumerate(others)}
    return {signal: _COLOURS.get(signal) or extra[signal] for signal in signals}


def front_of(group: Group) -> list[tuple[float, float, str]]:
    """Return the efficient points of a group on validation: sparsity, accuracy, names of all that lie there."""
    names: dict[tuple[float, float], list[str]] = {}
    for run, efficient in zip(group.runs, group.efficient, strict=True):
        if efficient:
            names.setdefault((run.sparsity, run.validation), []).append(run.strategy)
    return [(x, y, " = ".join(dict.fromkeys(strategies))) for (x, y), strategies in sorted(names.items())]


def draw_picture(groups: Sequence[Group], path: Path) -> None:
    """Draw validation and test accuracy against sparsity, a row per group, as PNG.

    Args:
        groups: Completed runs by model and data set.
        path: Where the PNG goes; written atomically.
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
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))


def _draw_panel(axis: Any, group: Group, split: str, colours: dict[str, str]) -> None:
    dense = 100 * getattr(group.runs[0], f"dense_{split}")
    noise = 100 * group.noise(split)
    axis.axhspan(dense - noise, dense + noise, color="0.5", alpha=0.15, linewidth=0, label="± one standard error")
    axis.axhline(dense, color="0.35", linewidth=1.2, linestyle="--", label="dense")
    for signal, colour in colours.items():
        runs = [run for run in group.runs if run.signal == signal]
        x, y = [100 * run.sparsity for run in runs], [100 * getattr(run, split) for run in runs]
        axis.scatter(x, y, s=34, color=colour, alpha=0.85, linewidths=0, label=signal)
    chosen = [run for run, efficient in zip(group.runs, group.efficient, strict=True) if efficient]
    x, y = [100 * run.sparsity for run in chosen], [100 * getattr(run, split) for run in chosen]
    axis.scatter(
        x,
        y,
        s=120,
        facecolors="none",
        edgecolors="black",
        linewidths=1.2,
        label="Pareto-efficient (chosen on validation)",
    )
    values = [100 * v for run in group.runs for v in (run.validation, run.test, run.dense_validation, run.dense_test)]
    reach = max(values) - min(values) or 1.0
    axis.set_ylim(min(values) - 0.35 * reach, max(values) + 0.08 * reach)
    if split == "validation":
        front = front_of(group)
        axis.step([100 * p[0] for p in front], [100 * p[1] for p in front], where="pre", color="black", linewidth=0.9)
        _label(axis, front)
    axis.set_xlabel("sparsity (% of prunable weights)")
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelleft=True)


def _label(axis: Any, front: Sequence[tuple[float, float, str]]) -> None:
    """Name efficient points below the panel's points, spread so that names do not run into each other."""
    if not front:
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


def draw_page(report: Report) -> str:
    """Return a self-contained HTML page: verdict, interactive chart, sortable tables, failures.

    Everything that comes from files is escaped.
    """
    from mmp.report import facts_of, seeds_of, table_of, verdicts_of

    body = [f"<h1>Sweep {html.escape(report.folder.name)}</h1>", f"<p>{html.escape(report.counts)}.</p>"]
    if report.groups:
        body.append(_interactive(report.groups))
    for group in report.groups:
        body.append(f"<h2>{html.escape(group.title)}</h2>")
        body.append("<ul>" + "".join(f"<li>{html.escape(fact)}</li>" for fact in facts_of(group)) + "</ul>")
        body += [
            _table(headings, rows) for headings, rows in (table_of(group), seeds_of(group), verdicts_of(group)) if rows
        ]
    for title, runs in (("Failed", report.failed), ("Unfinished", report.unfinished)):
        if runs:
            items = "".join(f"<li><b>{html.escape(r.folder)}</b>: {html.escape(r.reason)}</li>" for r in runs)
            body.append(f"<h2>{title}</h2><ul>{items}</ul>")
    return _PAGE.replace("{title}", html.escape(report.folder.name)).replace("{body}", "\n".join(body))


def _interactive(groups: Sequence[Group]) -> str:
    from plotly.graph_objects import Figure, Scatter
    from plotly.subplots import make_subplots

    colours = colours_of(groups)
    titles = [f"{html.escape(group.title)}: {split}" for group in groups for split, _ in _PANELS]
    rows = len(groups)
    figure: Figure = make_subplots(
        rows=rows, cols=2, subplot_titles=titles, shared_yaxes=True, vertical_spacing=0.22 / rows
    )
    shown: set[str] = set()
    for row, group in enumerate(groups, start=1):
        for column, (split, _) in enumerate(_PANELS, start=1):
            dense = 100 * getattr(group.runs[0], f"dense_{split}")
            ends = [100 * group.runs[0].sparsity, 100 * group.runs[-1].sparsity]
            figure.add_trace(
                Scatter(
                    x=ends,
                    y=[dense, dense],
                    mode="lines",
                    name="dense",
                    legendgroup="dense",
                    showlegend=not shown,
                    line={"color": "gray", "width": 1, "dash": "dash"},
                    hoverinfo="name+y",
                ),
                row=row,
                col=column,
            )
            shown.add("dense")
            for signal, colour in colours.items():
                pairs = [p for p in zip(group.runs, group.efficient, strict=True) if p[0].signal == signal]
                figure.add_trace(
                    Scatter(
                        x=[100 * run.sparsity for run, _ in pairs],
                        y=[100 * getattr(run, split) for run, _ in pairs],
                        mode="markers",
                        name=html.escape(signal),
                        legendgroup=html.escape(signal),
                        showlegend=signal not in shown,
                        text=[_hover(run) for run, _ in pairs],
                        hoverinfo="text",
                        marker={
                            "color": colour,
                            "size": [13 if efficient else 8 for _, efficient in pairs],
                            "symbol": ["star" if efficient else "circle" for _, efficient in pairs],
                        },
                    ),
                    row=row,
                    col=column,
                )
                shown.add(signal)
            if split == "validation":
                front = front_of(group)
                x, y = [100 * p[0] for p in front], [100 * p[1] for p in front]
                line = {"shape": "vh", "color": "gray", "width": 1}
                figure.add_trace(
                    Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False), row=row, col=column
                )
    figure.update_xaxes(title_text="sparsity (% of prunable weights)", gridcolor="rgba(128,128,128,.25)")
    figure.update_yaxes(title_text="accuracy (%)", gridcolor="rgba(128,128,128,.25)", col=1)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.25)", col=2)
    figure.update_layout(
        height=430 * len(groups) + 60,
        margin={"l": 50, "r": 10, "t": 60, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#808080"},
        legend={"orientation": "h", "y": -0.18 / len(groups)},
    )
    chart = figure.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False, "responsive": True})
    note = (
        "Stars are Pareto-efficient on validation accuracy, on which the choice is made; test accuracy shows its worth."
    )
    return f"<div class='chart'>{chart}</div><p>{note}</p>"


def _hover(run: Run) -> str:
    lines = [
        f"<b>{html.escape(run.configuration)}</b> (seed {run.seed})",
        f"sparsity {100 * run.sparsity:.2f} %",
        f"validation {100 * run.validation:.2f} %",
        f"test {100 * run.test:.2f} %, drop {run.drop:+.2f} points",
        f"masked, before fine-tuning: {100 * run.pruned_test:.2f} %",
    ]
    if run.reconstructed_test is not None:
        lines.append(f"re-solved, before fine-tuning: {100 * run.reconstructed_test:.2f} %")
    return "<br>".join(lines)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th><button>{html.escape(heading)}</button></th>" for heading in headings)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 0 auto; padding: 1rem; }
.wide, .chart { overflow-x: auto; }
.chart > div { min-width: 640px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid; }
</style></head><body>
{body}
<script>
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const cell = button.parentNode, column = cell.cellIndex, body = cell.closest("table").tBodies[0];
  const up = cell.getAttribute("aria-sort") !== "ascending";
  cell.parentNode.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  cell.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = row => row.cells[column].textContent;
  const compare = (a, b) => {
    const x = parseFloat(value(a)), y = parseFloat(value(b));
    return isNaN(x) || isNaN(y) ? value(a).localeCompare(value(b)) : x - y;
  };
  [...body.rows].sort((a, b) => up ? compare(a, b) : compare(b, a)).forEach(row => body.append(row));
}));
</script></body></html>
"""
