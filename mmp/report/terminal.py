"""Reports in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.markup import escape

from mmp.report.compare import GroupComparison
from mmp.report.content import Report
from mmp.report.tables import Table, comparison_table, tables_of

_MOST_RUNS = 12  # lines for failed runs, and for unfinished ones
_MOST_REASON = 240  # characters of a reason
_LEAST_WIDTH = {"configuration": 20}  # characters of a column in a narrow terminal
_LEFT_OUT = {"of all %", "epochs", "seconds", "same masks as"}  # columns without room in a terminal
_LEFT_OUT_IF_NARROW = {"val %", "seeds", "masked %", "quartiles"}
_NARROW = 100  # characters of a terminal


def print_report(report: Report, console: Console, tables: bool = False) -> None:
    """Print the findings about each model and data set, the runs without a result, and the number of runs.

    Args:
        report: The report.
        console: The terminal.
        tables: Whether to print the tables of all configurations, too.
    """
    for group, summary in zip(report.groups, report.summaries, strict=True):
        for table in tables_of(group) if tables else ():
            _print_table(table, console)
        _print_lines(summary, console)
        console.print()
    _print_without_result(report, "", console)
    console.print(report.counts)


def print_comparison(a: Report, b: Report, compared: Sequence[GroupComparison], console: Console) -> None:
    """Print the comparison of two sweeps.

    Args:
        a: The reference.
        b: The other sweep.
        compared: The comparison of each model and data set.
        console: The terminal.
    """
    console.print(f"A: {escape(str(a.folder))}\nB: {escape(str(b.folder))}", soft_wrap=True)
    for comparison in compared:
        if (table := comparison_table(comparison)).rows:
            _print_table(table, console)
        _print_lines(comparison.summary(), console)
    _print_without_result(a, " in A", console)
    _print_without_result(b, " in B", console)


def _print_lines(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(escape(line), highlight=False)


def _print_without_result(report: Report, where: str, console: Console) -> None:
    """Print one line for each run without a result, at most 12 of a kind; the page lists all of them in full."""
    for kind, runs in report.without_result.items():
        for run in runs[:_MOST_RUNS]:
            reason = textwrap.shorten(run.reason, _MOST_REASON, placeholder=" ...")
            console.print(f"[red]{kind.lower()}{where}[/red] {escape(run.folder)}: {escape(reason)}")
        if len(runs) > _MOST_RUNS:
            console.print(f"[red]{kind.lower()}{where}[/red] {len(runs) - _MOST_RUNS} more")


def _print_table(table: Table, console: Console) -> None:
    """Print a table without the columns that have no room in this terminal."""
    from rich.table import Table as RichTable

    shown = RichTable(title=escape(table.title), title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    left_out = _LEFT_OUT | (_LEFT_OUT_IF_NARROW if console.width < _NARROW else set())
    kept = [i for i, heading in enumerate(table.headings) if heading not in left_out]
    for i in kept:
        words = table.headings[i] in table.words  # a narrow terminal wraps words and never numbers
        heading = table.headings[i].removesuffix(" %")
        side: Literal["left", "right"] = "left" if words else "right"
        shown.add_column(heading, justify=side, no_wrap=not words, overflow="fold", min_width=_LEAST_WIDTH.get(heading))
    same = table.headings.index("same masks as") if "same masks as" in table.headings else None
    for row in table.rows:
        twins = f" = {row[same]}" if same is not None and row[same] else ""
        cells = [row[i] + (twins if table.headings[i] == "strategy" else "") for i in kept]
        shown.add_row(*map(escape, cells))
    console.print(shown)
