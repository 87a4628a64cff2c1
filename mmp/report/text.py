"""Reports as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from mmp.markdown import escaped, table_of
from mmp.report.compare import GroupComparison
from mmp.report.content import Report
from mmp.report.tables import Table, comparison_table, tables_of


def report_markdown(report: Report) -> str:
    """Return the report of a sweep: findings and tables of each model and data set, then the runs without a result."""
    lines = [f"# Sweep {escaped(report.folder.name)}", "", f"Runs: {report.counts}.", ""]
    for group, summary in zip(report.groups, report.summaries, strict=True):
        lines += [f"## {escaped(group.title)}", "", *_items(summary), ""]
        for table in tables_of(group):
            lines += [_table(table), ""]
    return "\n".join(lines + _without_result(report))


def comparison_markdown(a: Report, b: Report, compared: Sequence[GroupComparison]) -> str:
    """Return the comparison of two sweeps.

    Args:
        a: The reference.
        b: The other sweep.
        compared: The comparison of each model and data set.
    """
    lines = [f"# A: {escaped(str(a.folder))}, B: {escaped(str(b.folder))}", ""]
    for comparison in compared:
        lines += [*_items(comparison.summary()), ""]
        if (table := comparison_table(comparison)).rows:
            lines += [_table(table), ""]
    return "\n".join([*lines, *_without_result(a, " in A"), *_without_result(b, " in B")])


def _items(lines: Sequence[str]) -> list[str]:
    return [f"- {escaped(line)}" for line in lines]


def _table(table: Table) -> str:
    return table_of(table.headings, [[*map(escaped, row)] for row in table.rows])


def _without_result(report: Report, where: str = "") -> list[str]:
    lines = []
    for kind, runs in report.without_result.items():
        lines += [f"## {kind}{where}", "", *_items([f"{run.folder}: {run.reason}" for run in runs]), ""]
    return lines
