"""Accuracy without whole channels: ten strategies against one width for all layers, before and after training.

``python -m benchmarks.channels_accuracy measure`` prunes a CNN and a ViT on digits and on Fashion-MNIST by all
strategies, removes 30, 50 and 70 % of their parameters, re-solves the other weights, and trains. It runs the sweeps of
``prune.py`` in ``results/sweeps/channels_accuracy``, which skip what is completed. On Fashion-MNIST, only the strategy
with the best validation accuracy before the training is trained. ``data=digits seeds=0,1 removed=0.5`` measures only
these.

On digits, the ViT is pruned a second time by dimensions of its heads, with ``ranges=channels_dims``.

Beside the best strategy stands the network that a practitioner would take: every group loses the same share, so that
the network has as many multiply-adds. ``python -m benchmarks.channels_accuracy latency`` times both in onnxruntime, and
``python -m benchmarks.channels_accuracy report`` writes the rows to ``benchmarks/results/channels_accuracy.jsonl``,
the tables to docs/channels.md, and their picture.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from benchmarks.tables import fill_page, spread
from mmp.errors import MmpError
from mmp.export.latency import compare_latency
from mmp.export.source import ExportedRun
from mmp.export.targets import load_target
from mmp.files import write_text
from mmp.markdown import table_of

ROWS = RESULTS / "channels_accuracy.jsonl"
FOLDER, PAGE = Path("results/sweeps/channels_accuracy"), Path("docs/channels.md")
PICTURE = Path("docs/images/channels_accuracy.png")
MODELS, DATA, SEEDS, REMOVED = ("cnn", "vit"), ("digits", "fashion_mnist"), (0, 1, 2), (0.3, 0.5, 0.7)
SETTINGS = (
    "signal=obs_fisher", "pattern=channels", "reconstruct=least_squares", "reconstruct.rows_per_column=0",
    "data.workers=0", "trainer.enable_progress_bar=false", "logger=none", f"sweep={FOLDER.name}",
)  # fmt: skip
TRAINED = ("finetune=strong", "finetune.learning_rate=5e-4")  # the best of four recipes on validation images of digits
UNIFORM = ("ranges.name=uniform", "ranges.rules=[]", "ranges.default=[0,0.5]", "strategy=balanced")
HEADS, DIMENSIONS = "channels", "channels_dims"  # tables of ranges
GAP = 0.05  # of the multiply-adds: what a uniform network may differ by from the strategy that it is compared with
SECONDS = 3.0  # of timing for each pair of networks

Row = dict[str, Any]
Case = tuple[str, str, float]  # model, data, share of the parameters to remove


def sweep(*settings: str, ranges: str = HEADS) -> None:
    """Run a sweep; completed runs are skipped."""
    subprocess.run([sys.executable, "prune.py", "-m", *SETTINGS, f"ranges={ranges}", *settings], check=True)


def measure(data: Sequence[str], seeds: Sequence[int], shares: Sequence[float]) -> None:
    """Run everything that is missing."""
    listed = ",".join(map(str, shares))
    for name, seed in product(data, seeds):
        chosen = (f"data={name}", f"seed={seed}")
        training = TRAINED if name == "digits" else ("finetune=none",)
        sweep(*chosen, f"model={','.join(MODELS)}", "strategy=glob(*)", f"budget={listed}", *training)
        if name == "digits":
            settings = (*chosen, "model=vit", "strategy=glob(*)", f"budget={listed}", *training)
            sweep(*settings, ranges=DIMENSIONS)
        for model, removed in product(MODELS, shares):
            found = [row for row in rows_of(FOLDER) if case_of(row) == (model, name, removed) and row["seed"] == seed]
            best = max((row for row in found if row["ranges"] == HEADS), key=validation)
            same = (*chosen, f"model={model}", *TRAINED)
            sweep(*same, f"strategy={best['strategy']}", f"budget={removed}")
            sweep(*same, *UNIFORM, f"budget.macs={best['multiply_adds']:.4f}")


def rows_of(folder: Path) -> list[Row]:
    """Return a row for each completed run of a folder."""
    rows = []
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["status"] == "completed":
            counts = result["multiply_adds"]
            kept = ("model", "data", "seed", "strategy", "ranges", "finetune", "budget", "sparsity_all", "accuracy")
            row = {key: result[key] for key in kept}
            rows.append(
                {
                    **row,
                    "multiply_adds": counts["pruned"] / counts["dense"],
                    "latency": result_latency(path.parent),
                    "run": path.parent.name,
                }
            )
    return rows


def result_latency(run: Path) -> list[float] | None:
    """Return the ratio of latencies and its quartiles that :func:`latency` has written beside a run."""
    path = run / "latency.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def latency() -> None:
    """Time the chosen strategy and the uniform network of every case in onnxruntime, beside the dense network."""
    target = load_target("onnx")
    for pair in pairs_of(rows_of(FOLDER)):
        for row in pair:
            run = FOLDER / row["run"]
            if row["latency"]:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                exported = ExportedRun(run, (), Path(scratch))
                engines = []
                for source in (exported.source, exported.dense[0]):
                    path = source.scratch / target.files[0]
                    target.write(source, path)
                    engines.append(target.open(path, source))
                found = compare_latency(*engines, exported.source.images[:1], SECONDS)
            write_text(run / "latency.json", json.dumps([found.ratio, *found.quartiles]))


def case_of(row: Row) -> Case:
    """Return the case of a row of a strategy; the share is 0 for a uniform network."""
    return row["model"], row["data"], row["budget"] or 0.0


def stage(row: Row, split: str, trained: bool = False) -> float:
    """Return an accuracy in percent: re-solved, or trained."""
    return float(100 * row["accuracy"]["finetuned" if trained else "reconstructed"][split])


def validation(row: Row) -> tuple[float, str]:
    """Return the validation accuracy before training, and the strategy's name, so that a choice is unique."""
    return stage(row, "validation"), row["strategy"]


def drop(row: Row, trained: bool = False) -> float:
    """Return the points of test accuracy that a network loses against the dense one of its seed."""
    return 100 * row["accuracy"]["dense"]["test"] - stage(row, "test", trained)


def untrained(rows: Iterable[Row], ranges: str = HEADS) -> dict[Case, dict[int, dict[str, Row]]]:
    """Return the rows of strategies by case, by seed and by strategy; the trained one if there are two."""
    found: dict[Case, dict[int, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["ranges"] == ranges:
            by_strategy = found[case_of(row)][row["seed"]]
            if row["strategy"] not in by_strategy or row["finetune"] != "none":
                by_strategy[row["strategy"]] = row
    return found


def pairs_of(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the trained strategy and the uniform network of every case and seed."""
    pairs = []
    for (model, data, _), by_seed in untrained(rows).items():
        for seed, strategies in by_seed.items():
            best = max(strategies.values(), key=validation)
            same = [
                r for r in rows if (r["model"], r["data"], r["seed"], r["finetune"]) == (model, data, seed, "strong")
            ]
            ours = [
                r
                for r in same
                if r["ranges"] == HEADS and (r["strategy"], r["budget"]) == (best["strategy"], best["budget"])
            ]
            others = [r for r in same if r["ranges"] == "uniform"]
            gaps = [abs(other["multiply_adds"] - best["multiply_adds"]) for other in others]
            if ours and min(gaps, default=1.0) <= GAP:  # of another share, if this one is not measured yet
                pairs.append((ours[0], others[gaps.index(min(gaps))]))
    return pairs


def best_table(rows: Sequence[Row]) -> str:
    """Return the table of the chosen strategy against one width for all layers."""
    by_case: dict[Case, list[tuple[Row, Row]]] = defaultdict(list)
    for ours, uniform in pairs_of(rows):
        by_case[case_of(ours)].append((ours, uniform))
    lines = []
    for (model, data, removed), pairs in sorted(by_case.items(), key=lambda item: (item[0][1], *item[0])):
        mine, theirs = zip(*pairs, strict=True)
        names = sorted({row["strategy"] for row in mine})
        lines.append(
            [
                data, model, f"{100 * removed:.0f}", spread(100 * r["accuracy"]["dense"]["test"] for r in mine),
                *(spread(drop(row, trained) for row in side) for trained in (False, True) for side in (mine, theirs)),
                *(timing(side) for side in (mine, theirs)), ", ".join(names),
            ]
        )  # fmt: skip
    headings = [
        "data", "model", "parameters removed %", "dense %", "lost, re-solved: strategy", "one width",
        "lost, trained: strategy", "one width ", "latency: strategy", "one width  ", "chosen",
    ]  # fmt: skip
    return table_of(headings, lines)


def timing(side: Sequence[Row]) -> str:
    """Return the mean latency as a share of dense."""
    found = [row["latency"][0] for row in side if row["latency"]]
    return spread(found) if found else "not measured"


def strategies_table(rows: Sequence[Row]) -> str:
    """Return the table of all strategies: points lost before training, and after it where it was measured."""
    lines = []
    for (model, data, removed), by_seed in sorted(untrained(rows).items(), key=lambda item: (item[0][1], *item[0])):
        for strategy in sorted({name for found in by_seed.values() for name in found}):
            found = [found[strategy] for found in by_seed.values() if strategy in found]
            trained = [row for row in found if row["finetune"] != "none"]
            gone = spread(100 * row["sparsity_all"] for row in found)
            cells = [data, model, f"{100 * removed:.0f}", strategy, gone, spread(drop(row) for row in found)]
            lines.append([*cells, spread(drop(row, trained=True) for row in trained) if trained else ""])
    return table_of(["data", "model", "budget %", "strategy", "removed %", "lost, re-solved", "lost, trained"], lines)


def dimensions_table(rows: Sequence[Row]) -> str:
    """Return the points that the ViT on digits loses by whole heads and by dimensions of heads."""
    tables = [untrained(rows, ranges) for ranges in (HEADS, DIMENSIONS)]
    lines = []
    for case in sorted(case for case in tables[1] if case in tables[0]):
        sides = [table[case] for table in tables]
        for line, lost in (("chosen", _lost_by_chosen), ("mean of the ten", _lost_on_average)):
            cells = [spread(lost(found, t) for found in side.values()) for t in (False, True) for side in sides]
            lines.append([f"{100 * case[2]:.0f}", line, *cells])
    headings = ["re-solved: heads", "re-solved: dimensions", "trained: heads", "trained: dimensions"]
    return table_of(["parameters removed %", "strategy", *headings], lines)


def _lost_by_chosen(found: dict[str, Row], trained: bool) -> float:
    return drop(max(found.values(), key=validation), trained)


def _lost_on_average(found: dict[str, Row], trained: bool) -> float:
    return statistics.mean(drop(row, trained) for row in found.values())


def report() -> None:
    """Write the rows, the tables and the picture."""
    rows = rows_of(FOLDER) if FOLDER.is_dir() else [json.loads(line) for line in ROWS.read_text().splitlines()]
    write_text(ROWS, "".join(json.dumps(row) + "\n" for row in rows))
    tables = {"channels: best": best_table(rows), "channels: every strategy": strategies_table(rows)}
    tables["channels: dimensions"] = dimensions_table(rows)
    fill_page(PAGE, tables)
    draw(rows)


def draw(rows: Sequence[Row]) -> None:
    """Draw the points that every strategy loses before training, and those of the chosen one after it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = untrained(rows)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [(model, data) for data in DATA for model in MODELS if any(case[:2] == (model, data) for case in cases)]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    chosen = pairs_of(rows)
    sides: dict[str, tuple[Callable[[tuple[Row, Row]], float], str, str]] = {
        "best strategy, re-solved": (lambda pair: drop(pair[0]), "#0072B2", "o"),
        "one width, re-solved": (lambda pair: drop(pair[1]), "0.45", "s"),
        "best strategy, trained": (lambda pair: drop(pair[0], trained=True), "#D55E00", "o"),
        "one width, trained": (lambda pair: drop(pair[1], trained=True), "0.1", "s"),
    }
    for axis, (model, data) in zip(axes, panels, strict=True):
        for (_, _, removed), by_seed in ((c, s) for c, s in cases.items() if c[:2] == (model, data)):
            every = [drop(row) for found in by_seed.values() for row in found.values()]
            axis.scatter([100 * removed - 1.5] * len(every), every, s=8, color="#56B4E9", alpha=0.6, linewidths=0)
        for number, (label, (lost, colour, marker)) in enumerate(sides.items()):
            points: dict[float, list[float]] = defaultdict(list)
            for pair in chosen:
                if (pair[0]["model"], pair[0]["data"]) == (model, data):
                    points[pair[0]["budget"]].append(lost(pair))
            places = sorted(points)
            axis.errorbar(
                [100 * place + 1.2 * number for place in places],
                [statistics.mean(points[place]) for place in places],
                yerr=[statistics.stdev(points[place]) if len(points[place]) > 1 else 0.0 for place in places],
                fmt=marker, color=colour, label=label, markersize=4, elinewidth=1.2, capsize=2,
            )  # fmt: skip
        axis.axhline(0, color="0.7", linewidth=0.8)
        axis.set_title(f"{model}, {data.replace('_', '-')}", fontsize=10)
        axis.set_xticks([100 * removed for removed in REMOVED])
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("points of test accuracy lost")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)
    figure.supxlabel("parameters removed (%); small dots: every strategy and seed, re-solved without training", size=9)
    figure.savefig(PICTURE, dpi=110)


def main(arguments: Sequence[str]) -> None:
    """Run one of the commands of the module's description.

    Raises:
        MmpError: if there is no such command or setting.
    """
    command, *rest = arguments or [""]
    choices = {"data": list(DATA), "seeds": list(map(str, SEEDS)), "removed": list(map(str, REMOVED))}
    settings = dict(argument.partition("=")[::2] for argument in rest)
    chosen = {key: settings[key].split(",") for key in settings}
    known = command in ("measure", "latency", "report") and (not chosen or command == "measure")
    if not known or any(set(values) - set(choices.get(key, ())) for key, values in chosen.items()):
        example = " ".join(f"{key}={','.join(values)}" for key, values in choices.items())
        raise MmpError(f"python -m benchmarks.channels_accuracy measure [{example}], then latency, then report")
    if command == "measure":
        data, seeds, shares = (choices | chosen).values()
        measure(data, list(map(int, seeds)), list(map(float, shares)))
    elif command == "latency":
        latency()
    else:
        report()


if __name__ == "__main__":
    main(sys.argv[1:])
