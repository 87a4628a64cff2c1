"""A report as Markdown and in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.markup import escape

from mmp import markdown
from mmp.markdown import escaped
from mmp.report import tables as report_tables
from mmp.report.content import Report
from mmp.report.groups import Group
from mmp.report.tables import Table


def tables_of(group: Group) -> list[Table]:
    """Return the tables of a group that have rows."""
    return [
        table
        for make in (report_tables.configurations_table, report_tables.verdicts_table)
        if (table := make(group)).rows
    ]


def as_markdown(report: Report) -> str:
    """Return the report as Markdown."""
    lines = [f"# Sweep {escaped(report.folder.name)}", "", f"{report.counts}.", ""]
    for group, summary in zip(report.groups, report.summaries, strict=True):
        lines += [f"## {escaped(group.title)}", "", *(f"- {escaped(line)}" for line in summary), ""]
        for table in tables_of(group):
            lines += [_as_markdown(table), ""]
    return "\n".join([*lines, *_ended(report)])


def _ended(report: Report, where: str = "") -> list[str]:
    """Return the runs without a result, as Markdown."""
    lines = []
    for title, runs in (("Failed", report.failed), ("Unfinished", report.unfinished)):
        if runs:
            lines += [
                f"## {title}{where}",
                "",
                *(f"- {escaped(run.folder)}: {escaped(run.reason)}" for run in runs),
                "",
            ]
    return lines


def _as_markdown(table: Table) -> str:
    return markdown.table_of(table.headings, [[*map(escaped, row)] for row in table.rows])


def show(report: Report, console: Console, tables: bool = False) -> None:
    """Print what was found about each model, what failed and why, and with ``tables`` every configuration."""
    for group, summary in zip(report.groups, report.summaries, strict=True):
        for table in tables_of(group) if tables else ():
            _print(table, console)
        _print_lines(summary, console)
        console.print()
    _print_ended(report, "", console)
    console.print(report.counts)


def _print_ended(report: Report, where: str, console: Console) -> None:
    """Print the runs without a result, a line each, and not the hundredth; the page has all of them and in full."""
    for title, runs in (("failed", report.failed), ("unfinished", report.unfinished)):
        for run in runs[:_MOST_ENDED]:
            reason = textwrap.shorten(run.reason, _MOST_REASON, placeholder=" ...")
            console.print(f"[red]{title}{where}[/red] {escape(run.folder)}: {escape(reason)}")
        if len(runs) > _MOST_ENDED:
            console.print(f"[red]{title}{where}[/red] {len(runs) - _MOST_ENDED} more")


def _print_lines(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(escape(line), highlight=False)


_LEAST = {"configuration": 20}  # characters of a column in a narrow terminal
_MOST_ENDED, _MOST_REASON = 12, 240  # lines, and characters of one
_NOT_IN_TERMINAL = {"of all %", "epochs", "s", "same masks as"}


def _print(table: Table, console: Console) -> None:
    """Print a table without the columns that a terminal has no room for."""
    from rich.table import Table as RichTable

    shown = RichTable(title=escape(table.title), title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    kept = [i for i, heading in enumerate(table.headings) if heading not in _NOT_IN_TERMINAL]
    for i in kept:
        words = table.headings[i] in table.words  # in a narrow terminal, these are broken and numbers are not
        heading = table.headings[i].removesuffix(" %")
        side: Literal["left", "right"] = "left" if words else "right"
        shown.add_column(heading, justify=side, no_wrap=not words, overflow="fold", min_width=_LEAST.get(heading))
    same = table.headings.index("same masks as") if "same masks as" in table.headings else None
    for row in table.rows:
        twins = f" = {row[same]}" if same is not None and row[same] else ""
        cells = [row[i] + (twins if table.headings[i] == "strategy" else "") for i in kept]
        shown.add_row(*map(escape, cells))
    console.print(shown)
