"""The accuracy that reconstruction recovers before any fine-tuning, by sparsity, strategy and seed; and its time.

``python -m benchmarks.reconstruction measure model=cnn data=digits`` measures the ten strategies at each of `BUDGETS`
for each of `SEEDS`, and appends a row per configuration to ``benchmarks/results/reconstruction.jsonl``; measured
configurations are skipped. ``seeds=3,4`` and ``budgets=0.9`` measure others.
``python -m benchmarks.reconstruction report`` prints the table of all rows as Markdown and draws
``docs/images/reconstruction.png``.
``python -m benchmarks.reconstruction cost swin_tiny_patch4_window7_224 swin 100 64`` reconstructs an untrained
timm model (name, range table, classes, images) under the strategy p70, on a GPU if there is one, and prints seconds and
peak memory.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from benchmarks import RESULTS
from benchmarks.short_training import DENSE, SUBJECTS
from mmp.config.choices import FOLDER, choices_of
from mmp.config.objects import instantiate
from mmp.config.registration import register
from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.data.module import ImageData
from mmp.errors import MmpError
from mmp.markdown import table_of
from mmp.models.networks import fill_input
from mmp.plan import load_strategy, make_plan
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import MaskEnforcer, Masks, make_masks
from mmp.pruning.reconstruction.reconstruct import reconstruct, summary_of
from mmp.pruning.signals import Magnitude, score
from mmp.runs.calibration import Calibration
from mmp.runs.memory import peak_memory, reset_peak_memory
from mmp.training.dense import dense_model
from mmp.training.evaluation import accuracy, device_of

ROWS = RESULTS / "reconstruction.jsonl"
PICTURE = Path("docs/images/reconstruction.png")
BUDGETS = (0.5, 0.8, 0.89, 0.91, 0.95, 0.97)
SEEDS = (0, 1, 2)
KINDS = ("masked", "reconstructed")
STUDIED = {subject.model: (*subject.settings, *DENSE) for subject in SUBJECTS.values()}  # the dense models of the study

Row = dict[str, Any]


def read_rows() -> list[Row]:
    """Return all measured rows."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []


def configured(overrides: list[str]) -> PruneConfig:
    """Return the configuration of a run, without the 10,000-weight rule: with it a small model cannot reach 97 %."""
    register()
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        arguments = [
            "reconstruct=least_squares",
            "reconstruct.rows_per_column=0",
            *overrides,
            "ranges.constraints.small_below=0",
        ]
        config = validate(compose("prune", arguments), PruneConfig)
    fill_input(config)
    return config


def measure(arguments: list[str]) -> None:
    """Measure the missing configurations of one model on one data set.

    Raises:
        MmpError: for an override that would change results but is not part of their rows.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    seeds = [int(seed) for seed in given.pop("seeds", ",".join(map(str, SEEDS))).split(",")]
    budgets = [float(budget) for budget in given.pop("budgets", ",".join(map(str, BUDGETS))).split(",")]
    for key, value in given.items():
        renamed = key.startswith("model.") and "model.label" in given
        if key not in ("model", "data", "signal") and not key.startswith("paths.") and not renamed:
            raise MmpError(
                f"{key}={value}: only model, data, signal, paths.*, seeds and budgets can be chosen here, and model.* "
                "with a model.label of its own"
            )
    studied = STUDIED.get(given.get("model.label", given.get("model", "")), ())
    overrides = [
        *(studied if given.get("data") == "fashion_mnist" else ()),
        *(f"{key}={value}" for key, value in given.items()),
    ]
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        config = configured([*overrides, f"seed={seed}"])
        model, data = config.model.title, config.data.name
        head = {"model": model, "data": data, "signal": config.signal.name, "seed": seed}
        done = {(r["budget"], r["strategy"]) for r in read_rows() if head.items() <= r.items()}
        if all((budget, strategy) in done for budget in budgets for strategy in choices_of("strategy")):
            continue
        for row in rows_of(config, budgets, done):
            with ROWS.open("a") as file:
                file.write(json.dumps({**head, **row}) + "\n")


def rows_of(config: PruneConfig, budgets: Sequence[float], done: Container[tuple[float, str]]) -> Iterable[Row]:
    """Yield a row per missing budget and strategy of a dense model; the same masks are measured once."""
    data, device = ImageData(config.data, config.seed), device_of(config)
    dense, _ = dense_model(config, data)
    layers = prunable_layers(dense)
    calibration = Calibration.of(config, dense, layers, data, device)
    scores, _ = calibration.scores(instantiate({"_target_": config.signal._target_}, "signal"))
    images = calibration.images(config.reconstruct.images)
    targets = calibration.targets(images, config.reconstruct.cache_megabytes)
    strategies = [load_strategy(name) for name in choices_of("strategy")]

    def test(models: dict[str, nn.Module]) -> dict[str, float]:
        return accuracy(models, data.test_dataloader(), config.data.classes, device)[0]

    def measured(masks: Masks) -> Row:
        masked, solved = copy.deepcopy(dense), copy.deepcopy(dense)
        MaskEnforcer(prunable_parameters(masked, layers)).set(masks)
        start = time.perf_counter()
        reports = reconstruct(
            solved, masks, images, config.reconstruct.ridge, dense, targets, config.reconstruct.rows_per_column
        )
        seconds, summary = time.perf_counter() - start, summary_of(reports)
        found = test({"masked": masked, "reconstructed": solved})
        return {"sparsity": round(masks.sparsity, 5), **found, "seconds": round(seconds, 2), "left": summary["left"]}

    dense_test = test({"dense": dense})
    for budget in budgets:
        seen: dict[str, Row] = {}
        for strategy, sparsities in make_plan(dense, config.ranges, strategies, budget).sparsities.items():
            if (budget, strategy) in done:
                continue
            masks = make_masks(scores, sparsities)
            key = masks.digest()
            if key not in seen:
                seen[key] = measured(masks)
            yield {"budget": budget, "strategy": strategy, **dense_test, **seen[key]}


@dataclass(frozen=True)
class Cost:
    """Seconds and peak bytes of one reconstruction, and the numbers of layers that it solved and left as masked."""

    seconds: float
    peak: int
    solved: int
    left: int


def cost(name: str, table: str, classes: int, images: int) -> Cost:
    """Measure one reconstruction of a model with random weights, on a GPU if there is one.

    Args:
        name: A timm model.
        table: Its range table.
        classes: Number of classes.
        images: Number of random images.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes).eval().to(device)
    layers = prunable_layers(model)
    scores = score(Magnitude(), prunable_parameters(model, layers), {})
    masks = make_masks(scores, make_plan(model, table).sparsities["p70"])
    size = timm.get_pretrained_cfg(name).input_size[-1]
    batches = torch.randn(images, 3, size, size, device=device).split(64)
    reset_peak_memory()
    start = time.perf_counter()
    reports = reconstruct(model, masks, batches)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds, peak = time.perf_counter() - start, peak_memory()["host" if device == "cpu" else "cuda"]
    summary = summary_of(reports)
    return Cost(seconds, peak, summary["solved"], summary["left"])


def print_cost(name: str, table: str, classes: str, images: str) -> None:
    """Print the result of :func:`cost`."""
    found = cost(name, table, int(classes), int(images))
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    sys.stdout.write(
        f"{name}, {images} images, {where}: {found.seconds:.1f} s, peak {found.peak / 2**30:.2f} GiB; "
        f"{found.solved} layers solved, {found.left} left as masked\n"
    )


def report() -> None:
    """Print the table of drops in points, mean and standard deviation over seeds, and draw the picture."""
    groups: dict[tuple[str, str, str, float], list[Row]] = defaultdict(list)
    for row in read_rows():
        groups[row["data"], row["model"], row["signal"], row["budget"]].append(row)
    headings = ["data", "model", "signal", "sparsity (%)", "seeds", "dense (%)"]
    headings += [f"{kind}: {what}" for kind in KINDS for what in ("mean of ten", "best", "worst")] + ["seconds"]
    table = []
    for (data, model, signal, budget), rows in sorted(groups.items()):
        seeds = sorted({row["seed"] for row in rows})
        cells = [
            data,
            model,
            signal,
            f"{100 * budget:.0f}",
            str(len(seeds)),
            f"{100 * _mean(r['dense'] for r in rows):.2f}",
        ]
        for kind in KINDS:
            of_seed = [_mean(drop(r, kind) for r in rows if r["seed"] == seed) for seed in seeds]
            spread = f" ± {statistics.stdev(of_seed):.2f}" if len(seeds) > 1 else ""
            by_strategy = {
                name: _mean(drop(r, kind) for r in rows if r["strategy"] == name)
                for name in sorted({r["strategy"] for r in rows})
            }
            ordered = sorted(by_strategy, key=lambda name: by_strategy[name])
            cells.append(f"{_mean(of_seed):.2f}{spread}")
            cells += [f"{by_strategy[name]:.2f} ({name})" for name in (ordered[0], ordered[-1])]
        table.append([*cells, f"{statistics.median(r['seconds'] for r in rows):.1f}"])
    sys.stdout.write(table_of(headings, table) + "\n")
    draw([row for rows in groups.values() for row in rows if row["signal"] == "magnitude"])


def drop(row: Row, kind: str) -> float:
    """Return the drop against the dense model of the same seed, in points."""
    return 100 * (row["dense"] - row[kind])


def draw(everything: Sequence[Row]) -> None:
    """Draw accuracy before fine-tuning against sparsity: a panel per data set and model, a line per strategy."""
    from matplotlib.figure import Figure

    panels = sorted({(row["data"], row["model"]) for row in everything})
    rows_of_panels = (len(panels) + 1) // 2
    figure = Figure(figsize=(11, 4.2 * rows_of_panels), layout="constrained")
    axes = figure.subplots(rows_of_panels, min(2, len(panels)), squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        rows = [row for row in everything if (row["data"], row["model"]) == panel]
        for kind, colour in zip(KINDS, ("#D55E00", "#0072B2"), strict=True):
            for strategy in sorted({row["strategy"] for row in rows}):
                points = defaultdict(list)
                for row in rows:
                    if row["strategy"] == strategy:
                        points[100 * row["budget"]].append(100 * row[kind])
                x = sorted(points)
                axis.plot(x, [_mean(points[p]) for p in x], color=colour, alpha=0.5, marker="o", markersize=3)
            axis.plot([], [], color=colour, label=kind)
        axis.axhline(100 * _mean(r["dense"] for r in rows), color="0.35", linestyle="--", linewidth=1, label="dense")
        title = f"{panel[1]} on {panel[0]}, {len({row['seed'] for row in rows})} seeds"
        axis.set(title=title, xlabel="sparsity (% of prunable weights)", ylabel="test accuracy (%)")
        axis.legend(loc="lower left")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


if __name__ == "__main__":
    if len(sys.argv) == 6 and sys.argv[1] == "cost":
        print_cost(*sys.argv[2:])
    elif sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2:])
    elif sys.argv[1:] == ["report"]:
        report()
    else:
        sys.exit(__doc__)
