"""The page of a report: one self-contained HTML file that needs no network, and works with 1,000 configurations.

Python writes the data and what can be read without JavaScript; the scripts in ``assets/`` draw. Text from
result files goes into the page as JSON or escaped, never as markup.
"""

from __future__ import annotations

import html
import json
import math
import re
import shlex
import statistics
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmp.config.identity import digest
from mmp.report.charts import colours_of
from mmp.report.compare import GroupComparison
from mmp.report.groups import Configuration, Group
from mmp.report.results import SETTINGS, Run
from mmp.report.tables import Table, comparison_table, verdicts_table

if TYPE_CHECKING:
    from mmp.report.content import Report


_SCRIPTS = ("charts.js", "tables.js", "detail.js", "page.js")  # the last begins
_CURVE = ("epoch", "train/loss", "val/loss", "val/accuracy", "sparsity")


def page_of(report: Report) -> str:
    """Return the page of one sweep."""
    groups = [
        _group([(report, group, "")], summary, [table] if (table := verdicts_table(group)).rows else [])
        for group, summary in zip(report.groups, report.summaries, strict=True)
    ]
    return _page(f"Sweep {report.folder.name}", f"{report.counts}.", groups, [(report, "")])


def comparison_page(a: Report, b: Report, compared: Sequence[GroupComparison]) -> str:
    """Return the page of two sweeps: their configurations in the same charts, and each against its counterpart.

    Args:
        a: The sweep that is the reference.
        b: The other.
        compared: What models and data sets they have in common.
    """
    groups = []
    for comparison in compared:
        pairs = [
            (report, group, name)
            for report, name in ((a, "A"), (b, "B"))
            for group in report.groups
            if group.title == comparison.title
        ]
        tables = [table] if (table := comparison_table(comparison)).rows else []
        groups.append(_group(pairs, comparison.summary(), tables))
    told = f"A: {a.folder} ({a.counts}). B: {b.folder} ({b.counts})."
    return _page(f"{a.folder.name} and {b.folder.name}", told, groups, [(a, "A"), (b, "B")])


def _page(title: str, told: str, groups: Sequence[dict[str, Any]], reports: Sequence[tuple[Report, str]]) -> str:
    from plotly.offline import get_plotlyjs

    data = {
        "groups": groups,
        "colours": colours_of(group for report, _ in reports for group in report.groups),
        "settings": [*SETTINGS, "other"],
    }
    parts = {
        "title": html.escape(title),
        "counts": html.escape(told),
        "summary": "".join(_section(group["title"], group["summary"]) for group in groups),
        "ended": "".join(_ended(report, sweep) for report, sweep in reports),
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


def _ended(report: Report, sweep: str) -> str:
    found = []
    for title, runs in (("Failed", report.failed), ("Unfinished", report.unfinished)):
        if runs:
            items = "".join(f"<li><b>{html.escape(r.folder)}</b> {html.escape(r.reason)}</li>" for r in runs)
            found.append(f"<section class='ended'><h2>{title} {sweep}</h2><ul>{items}</ul></section>")
    return "".join(found)


def _group(
    sweeps: Sequence[tuple[Report, Group, str]], summary: Sequence[str], tables: Sequence[Table]
) -> dict[str, Any]:
    group = sweeps[0][1]
    ranges: dict[Any, int] = {}
    return {
        "title": group.title,
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
            {"title": t.title, "headings": t.headings, "rows": t.rows, "words": sorted(t.words)} for t in tables
        ],
    }


def _configuration(one: Configuration, report: Report, sweep: str, ranges: dict[Any, int]) -> dict[str, Any]:
    run = one.runs[0]
    settings = {what: getattr(run, what) for what in SETTINGS}
    made_of = [run.model, run.data, run.configuration, *settings.values(), run.settings, sweep]
    return {
        "id": digest(made_of)[:12],
        "name": one.name,
        "signal": run.signal,
        "strategy": run.strategy,
        "kind": "baseline" if run.criterion else "strategy",
        "sweep": sweep,
        **settings,
        "other": one.other,
        "twins": one.named_twins,
        "runs": [{**_run(run, ranges), "export": _export(report.folder / run.folder)} for run in one.runs],
    }


def _run(run: Run, ranges: dict[Any, int]) -> dict[str, Any]:
    allowed = tuple((x.name, x.role, _rounded(x.lo), _rounded(x.hi), x.total) for x in run.layers)
    same = (
        "seed", "folder", "sparsity", "sparsity_all", "megabytes", "dense_megabytes", "validation", "test",
        "pruned_test", "reconstructed_test", "dense_validation", "dense_test", "drop", "epochs", "choice", "seconds",
        "command",
    )  # fmt: skip
    return {
        **{what: _rounded(getattr(run, what)) for what in same},
        "ranges": ranges.setdefault(allowed, len(ranges)),  # most runs share them
        "layers": [_rounded(layer.sparsity) for layer in run.layers],
        "history": [[_rounded(epoch.get(what)) for what in _CURVE] for epoch in run.history],
    }


def _export(folder: Path) -> str:
    """Return the command that exports a run, from where the report was made if the run lies below."""
    here = Path.cwd()
    place = folder.relative_to(here) if folder.is_relative_to(here) else folder
    return shlex.join(["python", "-m", "mmp.export", str(place), "target=onnx"])


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 9) if math.isfinite(value) else None
