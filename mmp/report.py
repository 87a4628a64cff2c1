"""Reports: a folder of runs -> one table, the Pareto front, a picture, a page.

``python -m mmp.report SWEEP_FOLDER`` reads every ``result.json`` below the folder and writes ``report/`` into it. The
result files are the only source. Efficient configurations are chosen on validation accuracy; test accuracy is shown and
never chosen by.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmp import markdown
from mmp.errors import MmpError
from mmp.files import write_text
from mmp.markdown import escaped
from mmp.reconstruct import LayerReport
from mmp.results import REPORT, SETTINGS, Run, load_runs
from mmp.verdict import verdicts


@dataclass
class Group:
    """The completed runs of one model on one data set, by rising sparsity.

    Attributes:
        model: Name of the model.
        data: Name of the data set.
        runs: Completed runs.
        efficient: For each run, whether no other is at least as sparse and as accurate on validation, and better in
            one of the two.
        twins: For each run, the other strategies that gave the very same masks.
    """

    model: str
    data: str
    runs: list[Run]
    efficient: list[bool] = field(default_factory=list)
    twins: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = sorted(self.runs, key=lambda run: (run.sparsity, run.configuration, run.seed, run.folder))
        self.efficient = pareto_front([(run.sparsity, run.validation) for run in self.runs])
        by_masks = defaultdict(list)
        for run in self.runs:
            by_masks[run.masks_hash, run.seed].append(run)
        self.twins = [
            sorted({_twin(other) for other in by_masks[run.masks_hash, run.seed]} - {_twin(run)}) for run in self.runs
        ]

    @property
    def title(self) -> str:
        """Model and data set."""
        return f"{self.model} on {self.data}"

    def noise(self, split: str) -> float:
        """Return the binomial standard error sqrt(p (1 - p) / n) of the dense model's accuracy, a fraction."""
        run = self.runs[0]
        p, n = (run.dense_test, run.test_samples) if split == "test" else (run.dense_validation, run.validation_samples)
        return (p * (1 - p) / n) ** 0.5 if n else 0.0

    def varies(self, what: str) -> bool:
        """Return whether an attribute differs between runs."""
        return len({getattr(run, what) for run in self.runs}) > 1


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

    @property
    def counts(self) -> str:
        """How many runs ended how."""
        done = sum(len(group.runs) for group in self.groups)
        return f"{done} completed, {len(self.failed)} failed, {len(self.unfinished)} unfinished"


def _twin(run: Run) -> str:
    return run.configuration if run.criterion else run.strategy


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each point whether it is efficient: none is at least as high in both and higher in one.

    Equal points are efficient together. Takes O(n log n).
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    efficient = [False] * len(points)
    best = (float("-inf"), float("-inf"))  # (y, x) of the highest y so far, which came with the highest x
    for i in order:
        x, y = points[i]
        if y > best[0] or (y, x) == best:
            efficient[i], best = True, (y, x)
    return efficient


def build_report(folder: Path) -> Report:
    """Read a folder and group its runs by model and data set."""
    runs = load_runs(folder)
    grouped: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.status == "completed":
            grouped[run.model, run.data].append(run)
    return Report(
        folder=folder,
        groups=[Group(model, data, members) for (model, data), members in sorted(grouped.items())],
        failed=[run for run in runs if run.status == "failed"],
        unfinished=[run for run in runs if run.status not in ("completed", "failed")],
    )


def write_report(folder: Path, console: Console | None = None) -> Report:
    """Write ``report/`` into a sweep folder: results.csv, results.md, pareto.png and index.html.

    With reconstruction in it, also reconstruction.csv: each layer's errors before and after.

    Args:
        folder: The sweep's folder.
        console: Where to show the tables too.

    Returns:
        What was read.

    Raises:
        MmpError: if the folder is missing, holds no result, or cannot be written.
    """
    from mmp.charts import draw_page, draw_picture  # drawing libraries are slow to import

    report = build_report(folder)
    target = folder / REPORT
    write_text(target / "results.csv", as_csv(report))
    write_text(target / "results.md", as_markdown(report))
    if any(run.layer_reports for group in report.groups for run in group.runs):
        write_text(target / "reconstruction.csv", reconstruction_csv(report))
    if report.groups:
        draw_picture(report.groups, target / "pareto.png")
    write_text(target / "index.html", draw_page(report))
    if console is not None:
        show(report, console)
        console.print(f"report: {target}")
    return report


CSV_COLUMNS = (
    "model", "data", "criterion", "signal", "strategy", *SETTINGS, "seed", "status", "sparsity", "sparsity_all",
    "validation", "test", "pruned_test", "reconstructed_test", "dense_validation", "dense_test", "drop", "epochs",
    "choice", "seconds",
)  # fmt: skip


def as_csv(report: Report) -> str:
    """Return all runs as CSV: fractions for sparsities and accuracies, points for the drop, reasons for failures."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, "pareto", "identical_to", "folder", "reason"])
    for group in report.groups:
        for run, efficient, twins in zip(group.runs, group.efficient, group.twins, strict=True):
            cells = [getattr(run, column) for column in CSV_COLUMNS]
            writer.writerow([*cells, int(efficient), " ".join(twins), run.folder, ""])
    for run in (*report.failed, *report.unfinished):
        known = CSV_COLUMNS.index("status") + 1
        cells = [getattr(run, column) for column in CSV_COLUMNS[:known]]
        blank = [""] * (len(CSV_COLUMNS) - known + 2)
        writer.writerow([*cells, *blank, run.folder, run.reason])
    return out.getvalue()


def reconstruction_csv(report: Report) -> str:
    """Return what reconstruction did to each layer of each run, as CSV: errors as shares of the dense variance."""
    out = io.StringIO()
    names = [field.name for field in fields(LayerReport)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["folder", "layer", *names[1:]])
    for group in report.groups:
        for run in group.runs:
            writer.writerows([run.folder, *(getattr(layer, name) for name in names)] for layer in run.layer_reports)
    return out.getvalue()


def table_of(group: Group) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of a group's table, as people read it: percent and points."""
    optional = [what for what in (*SETTINGS, "seed") if group.varies(what)]
    headings = ["signal", "strategy", *optional, "sparsity %", "of all %", "val %", "test %", "drop", "masked %"]
    headings += ["re-solved %"] if any(run.reconstructed_test is not None for run in group.runs) else []
    headings += ["epochs", "s", "front", "same masks as"]
    rows = []
    for run, efficient, twins in zip(group.runs, group.efficient, group.twins, strict=True):
        percents = (run.sparsity, run.sparsity_all, run.validation, run.test)
        cells = [run.signal, run.strategy, *(str(getattr(run, what)) for what in optional)]
        cells += [f"{100 * value:.2f}" for value in percents]
        cells += [f"{run.drop:+.2f}", f"{100 * run.pruned_test:.2f}"]
        if "re-solved %" in headings:
            cells.append("" if run.reconstructed_test is None else f"{100 * run.reconstructed_test:.2f}")
        cells += [f"{run.epochs} {run.choice}".strip(), f"{run.seconds:.1f}"]
        rows.append([*cells, "*" if efficient else "", ", ".join(twins)])
    return headings, rows


def seeds_of(group: Group) -> tuple[list[str], list[list[str]]]:
    """Return the table of mean and standard deviation over seeds; no rows if there is only one seed."""
    by_configuration = defaultdict(list)
    for run in group.runs:
        by_configuration[run.configuration, *(getattr(run, what) for what in SETTINGS), run.settings].append(run)
    shown = [what for what in SETTINGS if group.varies(what)]
    headings = ["configuration", *shown, "seeds", "sparsity %", "test %", "drop", "sd of drop"]
    if not group.varies("seed"):
        return headings, []
    rows = []
    for (configuration, *_), runs in by_configuration.items():
        drops = [run.drop for run in runs]
        spread = f"{statistics.stdev(drops):.2f}" if len(drops) > 1 else ""
        means = (100 * statistics.fmean(r.sparsity for r in runs), 100 * statistics.fmean(r.test for r in runs))
        settings = [str(getattr(runs[0], what)) for what in shown]
        cells = [configuration, *settings, str(len({run.seed for run in runs})), *(f"{mean:.2f}" for mean in means)]
        rows.append([*cells, f"{statistics.fmean(drops):+.2f}", spread])
    return headings, rows


def verdicts_of(group: Group) -> tuple[list[str], list[list[str]]]:
    """Return the table of the best strategy against the best baseline at each sparsity; no rows without baselines."""
    headings = ["sparsity %", "protocol", "best strategy", "drop", "best baseline", "drop ", "better by", "±", "seeds"]
    rows = []
    for verdict in verdicts(group.runs):
        low, high = (f"{100 * value:.1f}" for value in verdict.sparsities)
        cells = [low if low == high else f"{low} to {high}", " ".join(filter(None, verdict.protocol))]
        for runs in (verdict.strategy, verdict.baseline):
            cells += [runs[0].configuration, f"{statistics.fmean(run.drop for run in runs):+.2f}"]
        cells += [f"{verdict.better:+.2f}", f"{verdict.noise:.2f}", str(len(verdict.strategy)), verdict.words]
        rows.append(cells)
    return [*headings, "verdict"], rows


def facts_of(group: Group) -> list[str]:
    """Return what must be read with a group's table: the dense model, the noise, how the front was chosen."""
    run = group.runs[0]
    noise = 100 * group.noise("test")
    seeds = "" if not group.varies("seed") else " (of the first seed)"
    names = list(
        dict.fromkeys(r.configuration for r, efficient in zip(group.runs, group.efficient, strict=True) if efficient)
    )
    return [
        f"Dense model{seeds}: {run.parameters:,} parameters, validation {100 * run.dense_validation:.2f} %, "
        f"test {100 * run.dense_test:.2f} %.",
        f"Noise: one standard error of a test accuracy is {noise:.2f} points ({run.test_samples} images), of a "
        f"validation accuracy {100 * group.noise('validation'):.2f} ({run.validation_samples} images). Differences "
        f"below {2 * noise:.1f} points on test are not differences.",
        f"Pareto-efficient on validation, by rising sparsity: {', '.join(names)}.",
    ]


def as_markdown(report: Report) -> str:
    """Return the report as Markdown."""
    lines = [f"# Sweep {escaped(report.folder.name)}", "", f"{report.counts}.", ""]
    for group in report.groups:
        lines += [f"## {escaped(group.title)}", "", *(f"- {escaped(fact)}" for fact in facts_of(group)), ""]
        for headings, rows in (table_of(group), seeds_of(group), verdicts_of(group)):
            if rows:
                lines += [markdown.table_of(headings, [[*map(escaped, row)] for row in rows]), ""]
    for title, runs in (("Failed", report.failed), ("Unfinished", report.unfinished)):
        if runs:
            lines += [f"## {title}", "", *(f"- {escaped(run.folder)}: {escaped(run.reason)}" for run in runs), ""]
    return "\n".join(lines)


def show(report: Report, console: Console) -> None:
    """Print the report's tables, without the columns that a terminal has no room for."""
    for group in report.groups:
        tables = {"": table_of(group), ", seeds": seeds_of(group), ", strategies against baselines": verdicts_of(group)}
        for title, (headings, rows) in tables.items():
            if not rows:
                continue
            table = Table(
                title=f"{escape(group.title + title)} (in percent; drop in points)",
                title_justify="left",
                box=None,
                padding=(0, 1),
                pad_edge=False,
            )
            kept = [i for i, heading in enumerate(headings) if heading not in _NOT_IN_TERMINAL]
            for i in kept:
                words = headings[i] in _WORDS  # in a narrow terminal, these are broken and numbers are not
                side: Literal["left", "right"] = "left" if words else "right"
                table.add_column(headings[i].removesuffix(" %"), justify=side, no_wrap=not words, overflow="fold")
            for row in rows:
                same = f" = {row[-1]}" if headings[-1] == "same masks as" and row[-1] else ""
                cells = [row[i] + (same if headings[i] == "strategy" else "") for i in kept]
                table.add_row(*map(escape, cells))
            console.print(table)
        for fact in facts_of(group):
            console.print(escape(fact))
        console.print()
    for title, runs in (("failed", report.failed), ("unfinished", report.unfinished)):
        for run in runs:
            console.print(f"[red]{title}[/red] {escape(run.folder)}: {escape(' '.join(run.reason.split()))}")
    console.print(report.counts)


_NOT_IN_TERMINAL = {"of all %", "epochs", "s", "same masks as"}
_WORDS = {
    "signal", "strategy", *SETTINGS, "configuration", "front", "protocol", "best strategy", "best baseline", "verdict"
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and write the report of a sweep folder.

    Returns:
        Exit code: 0 if every run is completed, 1 if one failed or nothing could be read.
    """
    parser = argparse.ArgumentParser(prog="python -m mmp.report", description="Write the report of a sweep folder.")
    parser.add_argument("folder", type=Path, help="folder that holds the runs of a sweep")
    options = parser.parse_args(arguments)
    try:
        report = write_report(options.folder, Console())
    except MmpError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
