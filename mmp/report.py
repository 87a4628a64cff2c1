"""Reports: a folder of runs -> what to ship, told in ten lines, on a page, in tables and a picture.

``python -m mmp.report SWEEP_FOLDER`` reads every ``result.json`` below the folder and writes ``report/`` into it;
``python -m mmp.report A B`` compares two sweeps. The result files are the only source.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from mmp import markdown, report_tables
from mmp.compare import compare
from mmp.configurations import Group, groups_of
from mmp.errors import MmpError
from mmp.files import write_text
from mmp.markdown import escaped
from mmp.report_tables import Table
from mmp.results import REPORT, Run, load_runs
from mmp.summary import summary_of


@dataclass
class Report:
    """All runs of a folder.

    Attributes:
        folder: The sweep's folder.
        groups: Completed runs by model and data set.
        failed: Runs that failed, or whose result cannot be read.
        unfinished: Runs that began and have not ended.
    """

    folder: Path
    groups: list[Group]
    failed: list[Run]
    unfinished: list[Run]

    @cached_property
    def summaries(self) -> list[list[str]]:
        """What was found in each group, in words."""
        return [summary_of(group) for group in self.groups]

    @property
    def counts(self) -> str:
        """How many runs ended how."""
        done = sum(len(group.runs) for group in self.groups)
        return f"{done} completed, {len(self.failed)} failed, {len(self.unfinished)} unfinished"


def build_report(folder: Path) -> Report:
    """Read a folder and group its runs by model and data set.

    Raises:
        MmpError: if the folder is missing or holds no result.
    """
    runs = load_runs(folder)
    return Report(
        folder=folder.resolve(),
        groups=groups_of(runs),
        failed=[run for run in runs if run.status == "failed"],
        unfinished=[run for run in runs if run.status not in ("completed", "failed")],
    )


def write_report(folder: Path, console: Console | None = None, tables: bool = False) -> Report:
    """Write ``report/`` into a sweep folder: results.csv, results.md, pareto.png and index.html.

    With reconstruction in it, also reconstruction.csv: each layer's errors before and after.

    Args:
        folder: The sweep's folder.
        console: Where to tell the result, too.
        tables: Whether to show the tables there.

    Returns:
        What was read.

    Raises:
        MmpError: if the folder is missing, holds no result, or cannot be written.
    """
    from mmp.charts import draw_picture  # drawing libraries are slow to import
    from mmp.page import page_of

    report = build_report(folder)
    target = folder / REPORT
    write_text(target / "results.csv", report_tables.results_csv(report.groups, [*report.failed, *report.unfinished]))
    write_text(target / "results.md", as_markdown(report))
    if any(run.layer_reports for group in report.groups for run in group.runs):
        write_text(target / "reconstruction.csv", report_tables.reconstruction_csv(report.groups))
    if report.groups:
        draw_picture(report.groups, target / "pareto.png")
    write_text(target / "index.html", page_of(report))
    if console is not None:
        show(report, console, tables)
        console.print(f"report: {target / 'index.html'}", soft_wrap=True)
    return report


def write_comparison(a: Path, b: Path, console: Console | None = None) -> tuple[Report, Report]:
    """Compare two sweeps; write a page and a table to ``report/against-A/`` in the second one's folder.

    Args:
        a: Folder of the sweep that is the reference.
        b: Folder of the other.
        console: Where to show the table, too.

    Returns:
        What was read.

    Raises:
        MmpError: if a folder is missing or holds no result, or the two have no model and data set in common.
    """
    from mmp.page import comparison_page

    reports = build_report(a), build_report(b)
    a, b = (report.folder for report in reports)
    compared = compare(reports[0].groups, reports[1].groups)
    if not any(one.comparisons for one in compared):
        told = (", ".join(group.title for group in report.groups) or "nothing completed" for report in reports)
        raise MmpError(f"{a} and {b} have nothing in common that can be compared ({' | '.join(told)})")
    against = a.name if a.name != b.name else "-".join(a.parts[1:])
    target = b / REPORT / f"against-{against}"
    tables = [report_tables.comparison_table(one) for one in compared]
    lines = [f"# A: {escaped(str(a))}, B: {escaped(str(b))}", ""]
    for one, table in zip(compared, tables, strict=True):
        lines += [*(f"- {escaped(line)}" for line in one.summary()), ""]
        lines += [_as_markdown(table), ""] if table.rows else []
    for name, report in zip("AB", reports, strict=True):
        lines += _ended(report, f" in {name}")
    write_text(target / "comparison.md", "\n".join(lines))
    write_text(target / "index.html", comparison_page(*reports, compared))
    if console is not None:
        console.print(f"A: {escape(str(a))}\nB: {escape(str(b))}", soft_wrap=True)
        for one, table in zip(compared, tables, strict=True):
            if table.rows:
                _print(table, console)
            _print_lines(one.summary(), console)
        for name, report in zip("AB", reports, strict=True):
            _print_ended(report, f" in {name}", console)
        console.print(f"report: {target / 'index.html'}", soft_wrap=True)
    return reports


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and write the report of a sweep folder, or the comparison of two.

    Returns:
        Exit code: 0 if every run is completed, 1 if one failed or nothing could be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmp.report", description="Write the report of a sweep, or compare two sweeps."
    )
    parser.add_argument("folder", type=Path, help="folder that holds the runs of a sweep")
    parser.add_argument(
        "other", type=Path, nargs="?", help="folder of a second sweep, which is compared with the first"
    )
    parser.add_argument("--tables", action="store_true", help="show every configuration in the terminal")
    options = parser.parse_args(arguments)
    if options.other is not None and options.tables:
        parser.error("--tables is for one sweep; the comparison of two is a table already")
    reports: Sequence[Report]
    try:
        if options.other is None:
            reports = [write_report(options.folder, Console(), options.tables)]
        else:
            reports = write_comparison(options.folder, options.other, Console())
    except MmpError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 1 if any(report.failed for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
