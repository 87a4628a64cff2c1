"""The content of a report: the runs of a folder, grouped by model and data set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmp.report.groups import Group, groups_of
from mmp.report.results import Run, load_runs
from mmp.report.summary import summary_of


@dataclass
class Report:
    """All runs of a folder.

    Attributes:
        folder: The sweep's folder.
        groups: Completed runs by model and data set.
        failed: Runs that failed or whose result cannot be read.
        unfinished: Runs that have started and not ended.
    """

    folder: Path
    groups: list[Group]
    failed: list[Run]
    unfinished: list[Run]

    @cached_property
    def summaries(self) -> list[list[str]]:
        """The findings about each group, as lines of text."""
        return [summary_of(group) for group in self.groups]

    @property
    def counts(self) -> str:
        """The number of completed, failed and unfinished runs."""
        done = sum(len(group.runs) for group in self.groups)
        return f"{done} completed, {len(self.failed)} failed, {len(self.unfinished)} unfinished"

    @property
    def without_result(self) -> dict[str, list[Run]]:
        """Runs without a result, as ``Failed`` and ``Unfinished``; a kind without runs is left out."""
        kinds = {"Failed": self.failed, "Unfinished": self.unfinished}
        return {kind: runs for kind, runs in kinds.items() if runs}


def build_report(folder: Path) -> Report:
    """Read the runs of a folder and group them by model and data set.

    Raises:
        MmpError: if the folder is missing or contains no result.
    """
    runs = load_runs(folder)
    return Report(
        folder=folder.resolve(),
        groups=groups_of(runs),
        failed=[run for run in runs if run.status == "failed"],
        unfinished=[run for run in runs if run.status not in ("completed", "failed")],
    )
