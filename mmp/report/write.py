"""The files of a report: the tables, the picture and the page of one sweep, or of two compared."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from mmp.errors import MmpError
from mmp.files import write_text
from mmp.markdown import escaped
from mmp.report import tables as report_tables
from mmp.report.compare import compare
from mmp.report.content import Report, build_report
from mmp.report.results import REPORT
from mmp.report.text import _as_markdown, _ended, _print, _print_ended, _print_lines, as_markdown, show


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
    from mmp.report.charts import draw_picture  # drawing libraries are slow to import
    from mmp.report.page import page_of

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
    from mmp.report.page import comparison_page

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
