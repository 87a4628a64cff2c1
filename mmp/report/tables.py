"""Tables of a report: for people in the terminal, in Markdown and on the page; for programs as CSV.

Tables for people have percent and points, as means over seeds. CSV files have fractions, one line per run.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from mmp.pruning.reconstruction.layer_report import LayerReport
from mmp.report.compare import GroupComparison
from mmp.report.groups import Configuration, Group
from mmp.report.results import SETTINGS, Run
from mmp.report.timings import Timing
from mmp.report.verdict import verdicts

_RUN_COLUMNS = (
    "model", "data", "criterion", "signal", "strategy", *SETTINGS, "seed", "status", "sparsity", "sparsity_all",
    "megabytes", "validation", "test", "pruned_test", "reconstructed_test", "dense_validation", "dense_test", "drop",
    "epochs", "choice", "seconds",
)  # fmt: skip
_COLUMNS_WITHOUT_RESULT = _RUN_COLUMNS.index("status") + 1
_COLUMNS_OF_CHANNELS = ("parameters", "parameters_left", "multiply_adds")  # only where whole channels are pruned


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title: The title.
        headings: The heading of each column.
        rows: The cells of each row.
        words: The headings of columns that contain words; all others contain numbers.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[str] = frozenset()


def results_csv(groups: Sequence[Group], ended: Sequence[Run]) -> str:
    """Return all runs as CSV. Sparsities and accuracies are fractions, the drop is in points.

    If a run prunes whole channels, there are the columns ``parameters``, ``parameters_left``, and ``multiply_adds``,
    the share that is left.

    Args:
        groups: Completed runs by model and data set.
        ended: Runs without a result; of these, the settings and the reason are written.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = (*_RUN_COLUMNS, *(_COLUMNS_OF_CHANNELS if any(group.whole_channels for group in groups) else ()))
    writer.writerow([*columns, "other", "pareto", "identical_to", "folder", "reason"])
    for group in groups:
        for one in group.configurations:
            for run in one.runs:
                cells = [getattr(run, column) for column in columns]
                writer.writerow([*cells, one.other, int(one.efficient), "; ".join(one.named_twins), run.folder, ""])
    for run in ended:
        cells = [getattr(run, column) for column in _RUN_COLUMNS[:_COLUMNS_WITHOUT_RESULT]]
        blank = [""] * (len(columns) - _COLUMNS_WITHOUT_RESULT + 3)
        writer.writerow([*cells, *blank, run.folder, run.reason])
    return out.getvalue()


def reconstruction_csv(groups: Iterable[Group]) -> str:
    """Return the reconstruction reports on each layer of each run, as CSV with the columns of :class:`LayerReport`."""
    out = io.StringIO()
    names = [field.name for field in fields(LayerReport)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["folder", "layer", *names[1:]])
    for group in groups:
        for run in group.runs:
            writer.writerows([run.folder, *(getattr(layer, name) for name in names)] for layer in run.layer_reports)
    return out.getvalue()


def tables_of(group: Group) -> list[Table]:
    """Return the tables of a group that have rows."""
    tables = (configurations_table(group), latencies_table(group), verdicts_table(group))
    return [table for table in tables if table.rows]


def configurations_table(group: Group) -> Table:
    """Return the configurations of a group: means over seeds, and the standard deviation of the drop."""
    several = group.seeds > 1
    columns: dict[str, Callable[[Configuration], str]] = {
        "signal": lambda one: one.runs[0].signal,
        "strategy": lambda one: one.runs[0].strategy,
        **{what: _setting(what) for what in SETTINGS},
        "other": lambda one: one.other,
        "sparsity %": _percent("sparsity"),
        "of all %": _percent("sparsity_all"),
        "removed %": _percent("sparsity_all"),
        "MACs %": _known_percent("multiply_adds"),
        "MB": lambda one: f"{one.mean('megabytes'):.2f}",
        "val %": _percent("validation"),
        "test %": _percent("test"),
        "drop": lambda one: f"{one.mean('drop'):+.2f}",
        "sd": _deviation,
        "seeds": lambda one: str(one.seeds),
        "masked %": _percent("pruned_test"),
        "re-solved %": _known_percent("reconstructed_test"),
        "epochs": lambda one: f"{one.mean('epochs'):.3g} {_choices(one)}".strip(),
        "seconds": lambda one: f"{one.mean('seconds'):.1f}",
        "front": lambda one: "*" if one.efficient else "",
        "same masks as": lambda one: ", ".join(one.named_twins),
    }
    is_shown = {
        **{what: group.varies(what) for what in SETTINGS},
        "other": any(one.other for one in group.configurations),
        "sparsity %": not group.whole_channels,
        "of all %": not group.whole_channels,
        "removed %": group.whole_channels,
        "MACs %": group.whole_channels,
        "sd": several,
        "seeds": several,
        "re-solved %": any(run.reconstructed_test is not None for run in group.runs),
    }
    shown = {heading: cell for heading, cell in columns.items() if is_shown.get(heading, True)}
    rows = [[cell(one) for cell in shown.values()] for one in group.configurations]
    words = frozenset({"signal", "strategy", *SETTINGS, "other", "front", "same masks as"})
    return Table(f"{group.title} (percent; drop in points)", [*shown], rows, words)


def _setting(what: str) -> Callable[[Configuration], str]:
    return lambda one: str(getattr(one.runs[0], what))


def _percent(what: str) -> Callable[[Configuration], str]:
    return lambda one: f"{100 * one.mean(what):.2f}"


def _deviation(one: Configuration) -> str:
    spread = one.spread()
    return "" if spread is None else f"{spread:.2f}"


def _known_percent(what: str) -> Callable[[Configuration], str]:
    return lambda one: "" if (mean := one.known_mean(what)) is None else f"{100 * mean:.2f}"


def _choices(one: Configuration) -> str:
    return " ".join(dict.fromkeys(run.choice for run in one.runs if run.choice))


def latencies_table(group: Group) -> Table:
    """Return the measured latency of each exported run, as a share of the dense model's; no rows without exports."""
    share = "removed %" if group.whole_channels else "sparsity %"
    headings = ["configuration", "seed", "export", "latency / dense", "quartiles", share, "test %", "drop"]
    rows = [
        [one.name, str(run.seed), *_latency(timing), f"{100 * run.reduction:.2f}", *_accuracy(run)]
        for one in group.configurations
        for run in one.runs
        for timing in run.timings
    ]
    title = f"{group.title}: measured latency of one image, as a share of the dense model's"
    return Table(title, headings, rows, frozenset({"configuration", "export", "quartiles"}))


def _latency(timing: Timing) -> list[str]:
    quartiles = f"{timing.lower:.2f} to {timing.upper:.2f}" if timing.lower < timing.upper else ""
    return [timing.target, f"{timing.latency:.2f}", quartiles]


def _accuracy(run: Run) -> list[str]:
    return [f"{100 * run.test:.2f}", f"{run.drop:+.2f}"]


def verdicts_table(group: Group) -> Table:
    """Return the best strategy and the best baseline at each sparsity; no rows without baselines."""
    # Headings must differ, so the drop of the baseline has a space.
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
    return Table(f"{group.title}: best strategy against best baseline (points)", [*headings, "verdict"], rows, words)


def comparison_table(compared: GroupComparison) -> Table:
    """Return each configuration of two sweeps side by side."""
    runs_of_a = [a for comparison in compared.comparisons for a, _ in comparison.pairs]
    share = "removed" if any(run.whole_channels for run in runs_of_a) else "sparsity"
    headings = [
        "configuration",
        f"{share} A %",
        f"{share} B %",
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
        sparsities = [f"{100 * statistics.fmean(run.reduction for run in runs):.2f}" for runs in sides]
        drops = [f"{statistics.fmean(run.drop for run in runs):+.2f}" for runs in sides]
        better = [f"{comparison.better:+.2f}", f"{comparison.noise:.2f}", str(len(comparison.pairs)), comparison.words]
        rows.append([comparison.name, *sparsities, *drops, *better])
    return Table(f"{compared.title}: A against B (points)", headings, rows, frozenset({"configuration", "verdict"}))
