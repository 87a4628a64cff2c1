"""The page of a report: one self-contained HTML file that needs no network and works with 1,000 configurations.

Python writes the data, and the text that is readable without JavaScript. The scripts in ``assets/`` draw the charts and
the tables. Text from result files is inserted as JSON or escaped, never as markup.
"""

from __future__ import annotations

import html
import json
import math
import re
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from mmp.config.identity import digest
from mmp.report.charts import colours_of
from mmp.report.compare import GroupComparison
from mmp.report.content import Report
from mmp.report.groups import Configuration, Group
from mmp.report.results import SETTINGS, Run
from mmp.report.tables import Table, comparison_table, latencies_table, verdicts_table
from mmp.report.timings import Timing

_SCRIPTS = ("charts.js", "latency.js", "tables.js", "detail.js", "page.js")  # in this order: page.js uses all others
_CURVE = ("epoch", "train/loss", "val/loss", "val/accuracy", "sparsity")
_RUN_VALUES = (
    "seed", "folder", "sparsity", "sparsity_all", "reduction", "multiply_adds", "megabytes", "dense_megabytes",
    "validation", "test", "pruned_test", "reconstructed_test", "dense_validation", "dense_test", "drop", "epochs",
    "choice", "seconds",
)  # fmt: skip


def page_of(report: Report) -> str:
    """Return the page of one sweep."""
    groups = [
        _group([(report, group, "")], summary, [latencies_table(group), verdicts_table(group)])
        for group, summary in zip(report.groups, report.summaries, strict=True)
    ]
    return _page(f"Sweep {report.folder.name}", f"Runs: {report.counts}.", groups, [(report, "")])


def comparison_page(a: Report, b: Report, compared: Sequence[GroupComparison]) -> str:
    """Return the page of two sweeps: the configurations of both in the same charts, and the table that compares them.

    Args:
        a: The reference.
        b: The other sweep.
        compared: The comparison of each model and data set.
    """
    groups = []
    for comparison in compared:
        sweeps = [
            (report, group, name)
            for report, name in ((a, "A"), (b, "B"))
            for group in report.groups
            if group.title == comparison.title
        ]
        groups.append(_group(sweeps, comparison.summary(), [comparison_table(comparison)]))
    subtitle = f"A: {a.folder} (runs: {a.counts}). B: {b.folder} (runs: {b.counts})."
    return _page(f"{a.folder.name} and {b.folder.name}", subtitle, groups, [(a, "in A"), (b, "in B")])


def _page(title: str, subtitle: str, groups: Sequence[dict[str, Any]], reports: Sequence[tuple[Report, str]]) -> str:
    from plotly.offline import get_plotlyjs

    data = {
        "groups": groups,
        "colours": colours_of(group for report, _ in reports for group in report.groups),
        "settings": [*SETTINGS, "other"],
    }
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(subtitle),
        "summary": "".join(_section(group["title"], group["summary"]) for group in groups),
        "without_result": "".join(_without_result(report, where) for report, where in reports),
        "style": _asset("page.css"),
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": "\n".join(map(_asset, _SCRIPTS)),
        "plotly": get_plotlyjs().replace("</script", "<\\/script"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return files("mmp.report").joinpath("assets", name).read_text(encoding="utf-8")


def _section(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<section class='summary'><h2>{html.escape(title)}</h2><ul>{items}</ul></section>"


def _without_result(report: Report, where: str) -> str:
    sections = []
    for kind, runs in report.without_result.items():
        items = "".join(f"<li><b>{html.escape(run.folder)}</b> {html.escape(run.reason)}</li>" for run in runs)
        sections.append(f"<section class='ended'><h2>{kind} {where}</h2><ul>{items}</ul></section>")
    return "".join(sections)


# --- the data of the scripts


def _group(
    sweeps: Sequence[tuple[Report, Group, str]], summary: Sequence[str], tables: Sequence[Table]
) -> dict[str, Any]:
    """Return the data of one model on one data set.

    Args:
        sweeps: Report, group and name of each sweep.
        summary: The findings.
        tables: Tables to show below the configurations; those without rows are left out.
    """
    group = sweeps[0][1]
    ranges: dict[Any, int] = {}
    return {
        "title": group.title,
        "prunes": "channels" if group.whole_channels else "weights",
        "summary": list(summary),
        "noise": {
            **{split: _rounded(group.noise(split)) for split in ("validation", "test")},
            "seeds": _rounded(statistics.median(spreads)) if (spreads := group.spreads()) else None,
        },
        "configurations": [
            _configuration(one, report, sweep, ranges)
            for report, members, sweep in sweeps
            for one in members.configurations
        ],
        "ranges": [
            [dict(zip(("name", "role", "lo", "hi", "total"), layer, strict=True)) for layer in layers]
            for layers in ranges
        ],
        "tables": [
            {"title": one.title, "headings": one.headings, "rows": one.rows, "words": sorted(one.words)}
            for one in tables
            if one.rows
        ],
    }


def _configuration(one: Configuration, report: Report, sweep: str, ranges: dict[Any, int]) -> dict[str, Any]:
    run = one.runs[0]
    settings = {what: getattr(run, what) for what in SETTINGS}
    identity = [run.model, run.data, run.configuration, *settings.values(), run.settings, sweep]
    return {
        "id": digest(identity)[:12],
        "name": one.name,
        "signal": run.signal,
        "strategy": run.strategy,
        "kind": "baseline" if run.criterion else "strategy",
        "sweep": sweep,
        **settings,
        "other": one.other,
        "twins": one.named_twins,
        "runs": [_run(run, report.folder, ranges) for run in one.runs],
    }


def _run(run: Run, sweep_folder: Path, ranges: dict[Any, int]) -> dict[str, Any]:
    """Return the data of one run. Its ranges are an index, because most runs share them.

    Args:
        run: The run.
        sweep_folder: The folder that its own is relative to.
        ranges: The index of each list of layers with their ranges; a new list is added.
    """
    allowed = tuple((x.name, x.role, _rounded(x.lo), _rounded(x.hi), x.total) for x in run.layers)
    return {
        **{what: _rounded(getattr(run, what)) for what in _RUN_VALUES},
        "command": _rerun_command(run),
        "export": _export_command(sweep_folder / run.folder),
        "ranges": ranges.setdefault(allowed, len(ranges)),
        "layers": [_rounded(layer.sparsity) for layer in run.layers],
        "history": [[_rounded(epoch.get(what)) for what in _CURVE] for epoch in run.history],
        "timings": [_timing(timing) for timing in run.timings],
    }


def _timing(timing: Timing) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in asdict(timing).items()}


def _rerun_command(run: Run) -> str:
    """Return the command that runs this configuration alone: the script of a checkout, or the installed command."""
    program = ["python", "prune.py"] if Path("prune.py").is_file() else ["mmp-prune"]
    return shlex.join([*program, *run.overrides])


def _export_command(folder: Path) -> str:
    """Return the command that exports a run; its path is relative if the run is below the working folder."""
    here = Path.cwd()
    place = folder.relative_to(here) if folder.is_relative_to(here) else folder
    return shlex.join(["python", "-m", "mmp.export", str(place), "target=onnx"])


def _rounded(value: Any) -> Any:
    """Return a float with nine decimals, None if it is not finite; anything else unchanged."""
    if not isinstance(value, float):
        return value
    return round(value, 9) if math.isfinite(value) else None
