"""Tables of a report: what people read in the terminal, in Markdown and on the page, and CSV for programs.

People read percent and points, means over seeds; CSV has fractions, a line per run.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from mmp.compare import GroupComparison
from mmp.configurations import Configuration, Group
from mmp.reconstruct import LayerReport
from mmp.results import SETTINGS, Run
from mmp.verdict import verdicts

_RUN_COLUMNS = (
    "model", "data", "criterion", "signal", "strategy", *SETTINGS, "seed", "status", "sparsity", "sparsity_all",
    "megabytes", "validation", "test", "pruned_test", "reconstructed_test", "dense_validation", "dense_test", "drop",
    "epochs", "choice", "seconds",
)  # fmt: skip
_KNOWN_OF_FAILED = _RUN_COLUMNS.index("status") + 1


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title: What it shows.
        headings: Of the columns.
        rows: Cells.
        words: Headings of columns that hold words; the others hold numbers.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[str] = frozenset()


def results_csv(groups: Sequence[Group], ended: Sequence[Run]) -> str:
    """Return all runs as CSV: fractions for sparsities and accuracies, points for the drop, reasons for failures.

    Args:
        groups: Completed runs by model and data set.
        ended: Runs without a result.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_RUN_COLUMNS, "pareto", "identical_to", "folder", "reason"])
    for group in groups:
        for one in group.configurations:
            for run in one.runs:
                cells = [getattr(run, column) for column in _RUN_COLUMNS]
                writer.writerow([*cells, int(one.efficient), " ".join(one.twins), run.folder, ""])
    for run in ended:
        cells = [getattr(run, column) for column in _RUN_COLUMNS[:_KNOWN_OF_FAILED]]
        blank = [""] * (len(_RUN_COLUMNS) - _KNOWN_OF_FAILED + 2)
        writer.writerow([*cells, *blank, run.folder, run.reason])
    return out.getvalue()


def reconstruction_csv(groups: Iterable[Group]) -> str:
    """Return what reconstruction did to each layer of each run, as CSV: errors as shares of the dense variance."""
    out = io.StringIO()
    names = [field.name for field in fields(LayerReport)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["folder", "layer", *names[1:]])
    for group in groups:
        for run in group.runs:
            writer.writerows([run.folder, *(getattr(layer, name) for name in names)] for layer in run.layer_reports)
    return out.getvalue()


def configurations_table(group: Group) -> Table:
    """Return a group's configurations: means over seeds, and the spread of the drop."""
    optional = [what for what in SETTINGS if group.varies(what)]
    resolved = any(run.reconstructed_test is not None for run in group.runs)
    headings = ["signal", "strategy", *optional, "sparsity %", "of all %", "MB", "val %", "test %", "drop"]
    headings += ["sd", "seeds"] if group.seeds > 1 else []
    headings += ["masked %", *(["re-solved %"] if resolved else []), "epochs", "s", "front", "same masks as"]
    rows = [_cells(one, optional, group.seeds > 1, resolved) for one in group.configurations]
    words = frozenset({"signal", "strategy", *SETTINGS, "front", "same masks as"})
    return Table(f"{group.title} (percent; drop in points)", headings, rows, words)


def _cells(one: Configuration, optional: Sequence[str], seeds: bool, resolved: bool) -> list[str]:
    run = one.runs[0]
    cells = [run.signal, run.strategy, *(str(getattr(run, what)) for what in optional)]
    cells += [
        f"{100 * one.mean('sparsity'):.2f}",
        f"{100 * one.mean('sparsity_all'):.2f}",
        f"{one.mean('megabytes'):.2f}",
    ]
    cells += [f"{100 * one.mean(what):.2f}" for what in ("validation", "test")] + [f"{one.mean('drop'):+.2f}"]
    if seeds:
        spread = one.spread()
        cells += ["" if spread is None else f"{spread:.2f}", str(one.seeds)]
    cells.append(f"{100 * one.mean('pruned_test'):.2f}")
    if resolved:
        values = [run.reconstructed_test for run in one.runs if run.reconstructed_test is not None]
        cells.append(f"{100 * statistics.fmean(values):.2f}" if values else "")
    choices = " ".join(dict.fromkeys(run.choice for run in one.runs if run.choice))
    cells += [f"{one.mean('epochs'):.3g} {choices}".strip(), f"{one.mean('seconds'):.1f}"]
    return [*cells, "*" if one.efficient else "", ", ".join(one.twins)]


def verdicts_table(group: Group) -> Table:
    """Return the best strategy against the best baseline at each sparsity; no rows without baselines."""
    headings = ["sparsity %", "protocol", "best strategy", "drop", "best baseline", "drop ", "better by", "±", "seeds"]
    rows = []
    for verdict in verdicts(group.runs):
        low, high = (f"{100 * value:.1f}" for value in verdict.sparsities)
        cells = [low if low == high else f"{low} to {high}", " ".join(filter(None, verdict.protocol))]
        for runs in (verdict.strategy, verdict.baseline):
            cells += [runs[0].configuration, f"{statistics.fmean(run.drop for run in runs):+.2f}"]
        cells += [f"{verdict.better:+.2f}", f"{verdict.noise:.2f}", str(len(verdict.strategy)), verdict.words]
        rows.append(cells)
    words = frozenset({"protocol", "best strategy", "best baseline", "verdict"})
    return Table(f"{group.title}: strategies against baselines (points)", [*headings, "verdict"], rows, words)


def comparison_table(compared: GroupComparison) -> Table:
    """Return each configuration of two sweeps side by side: sparsity in percent, drops in points."""
    headings = [
        "configuration",
        "sparsity A %",
        "sparsity B %",
        "drop A",
        "drop B",
        "B better by",
        "±",
        "seeds",
        "verdict",
    ]
    rows = []
    for comparison in compared.comparisons:
        sides = list(zip(*comparison.pairs, strict=True))
        sparsities = [f"{100 * statistics.fmean(run.sparsity for run in runs):.2f}" for runs in sides]
        drops = [f"{statistics.fmean(run.drop for run in runs):+.2f}" for runs in sides]
        better = [f"{comparison.better:+.2f}", f"{comparison.noise:.2f}", str(len(comparison.pairs)), comparison.words]
        rows.append([comparison.name, *sparsities, *drops, *better])
    return Table(f"{compared.title}: A against B (points)", headings, rows, frozenset({"configuration", "verdict"}))
