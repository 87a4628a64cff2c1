"""The files of a report: tables, picture and page of one sweep, or of the comparison of two."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from mmp.errors import MmpError
from mmp.files import write_text
from mmp.report.compare import compare
from mmp.report.content import Report, build_report
from mmp.report.results import REPORT
from mmp.report.tables import reconstruction_csv, results_csv
from mmp.report.terminal import print_comparison, print_report
from mmp.report.text import comparison_markdown, report_markdown
from mmp.report.timings import LATENCIES, LATENCY_PICTURE, timings_csv


def write_report(folder: Path, console: Console | None = None, tables: bool = False) -> Report:
    """Write results.csv, results.md, pareto.png and index.html to ``report/`` in a sweep's folder.

    If a run was reconstructed, write reconstruction.csv, too: the errors of each layer before and after. If the latency
    of an export was measured, write latency.csv and latency.png.

    Args:
        folder: The sweep's folder.
        console: A terminal to print the findings to.
        tables: Whether to print the tables of all configurations there, too.

    Returns:
        The report.

    Raises:
        MmpError: if the folder is missing, contains no result, or cannot be written.
    """
    from mmp.report.charts import draw_picture  # drawing libraries are slow to import
    from mmp.report.latency_chart import draw_latencies
    from mmp.report.page import page_of

    report = build_report(folder)
    target = folder / REPORT
    write_text(target / "results.csv", results_csv(report.groups, [*report.failed, *report.unfinished]))
    write_text(target / "results.md", report_markdown(report))
    if any(run.layer_reports for group in report.groups for run in group.runs):
        write_text(target / "reconstruction.csv", reconstruction_csv(report.groups))
    if report.groups:
        draw_picture(report.groups, target / "pareto.png")
    if timings := {run.folder: run.timings for group in report.groups for run in group.runs if run.timings}:
        write_text(target / LATENCIES, timings_csv(timings))
        draw_latencies(report.groups, target / LATENCY_PICTURE)
    else:  # of an earlier report
        for name in (LATENCIES, LATENCY_PICTURE):
            (target / name).unlink(missing_ok=True)
    write_text(target / "index.html", page_of(report))
    if console is not None:
        print_report(report, console, tables)
        console.print(f"report: {target / 'index.html'}", soft_wrap=True)
    return report


def write_comparison(a: Path, b: Path, console: Console | None = None) -> tuple[Report, Report]:
    """Compare two sweeps; write comparison.md and index.html to ``report/against-A/`` in the folder of the second.

    Args:
        a: Folder of the reference.
        b: Folder of the other sweep.
        console: A terminal to print the comparison to.

    Returns:
        The reports of both sweeps.

    Raises:
        MmpError: if a folder is missing or contains no result, or the sweeps have no model and data set in common.
    """
    from mmp.report.page import comparison_page

    ours, theirs = build_report(a), build_report(b)
    compared = compare(ours.groups, theirs.groups)
    if not any(comparison.comparisons for comparison in compared):
        found = (", ".join(group.title for group in report.groups) or "nothing completed" for report in (ours, theirs))
        both = f"{ours.folder} and {theirs.folder}"
        raise MmpError(f"{both} have no comparable configuration ({' | '.join(found)})")
    target = theirs.folder / REPORT / f"against-{_folder_name(ours.folder, theirs.folder)}"
    write_text(target / "comparison.md", comparison_markdown(ours, theirs, compared))
    write_text(target / "index.html", comparison_page(ours, theirs, compared))
    if console is not None:
        print_comparison(ours, theirs, compared, console)
        console.print(f"report: {target / 'index.html'}", soft_wrap=True)
    return ours, theirs


def _folder_name(a: Path, b: Path) -> str:
    """Return a name for the reference: its folder's name, or the whole path if both folders have the same name."""
    return a.name if a.name != b.name else "-".join(a.parts[1:])
