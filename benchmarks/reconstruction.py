"""What reconstruction is worth before any fine-tuning, over sparsities, strategies and seeds.

``python -m benchmarks.reconstruction measure model=cnn data=digits`` appends a line per configuration to
``results/benchmarks/reconstruction.jsonl`` and skips those that are there;
``python -m benchmarks.reconstruction report`` prints the table of them as Markdown and draws the picture beside them.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from mmp.calibration import Calibration
from mmp.conf import FOLDER, choices_of
from mmp.config import PruneConfig, register
from mmp.data import ImageData
from mmp.dense import dense_model, device_of
from mmp.layers import prunable_layers, prunable_parameters
from mmp.markdown import table_of
from mmp.masks import MaskEnforcer, make_masks
from mmp.models import fill_input
from mmp.plan import load_strategy, make_plan
from mmp.reconstruct import reconstruct, summary_of
from mmp.signals import Magnitude
from mmp.training import accuracy
from mmp.validate import validate

RESULTS = Path("results/benchmarks/reconstruction.jsonl")
PICTURE = RESULTS.with_suffix(".png")
BUDGETS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97)
SEEDS = (0, 1, 2)


def configured(overrides: list[str]) -> PruneConfig:
    """Return the configuration of a run; the 10,000 rule is off, or 97 % were out of a small model's reach."""
    register()
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        config: PruneConfig = validate(compose("prune", [*overrides, "ranges.constraints.small_below=0"]))
    fill_input(config)
    return config


def measure(overrides: list[str]) -> None:
    """Measure all strategies at all budgets, for each seed."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
    done = {(line["model"], line["data"], line["seed"], line["budget"], line["strategy"]) for line in lines}
    strategies = [load_strategy(name) for name in choices_of("strategy")]
    for seed in SEEDS:
        config = configured([*overrides, f"seed={seed}"])
        label, device = config.model.label or config.model.name, device_of(config)
        data = ImageData(config.data, seed)
        dense, _ = dense_model(config, data)
        layers = prunable_layers(dense)
        calibration = Calibration.of(config, dense, layers, data, device)
        scores, _ = calibration.scores(Magnitude())
        images = calibration.images(config.reconstruct.images)
        for budget in BUDGETS:
            plan = make_plan(dense, config.ranges, strategies, budget)
            for strategy, sparsities in plan.sparsities.items():
                key = (label, config.data.name, seed, budget, strategy)
                if key in done:
                    continue
                masks = make_masks(scores, sparsities)
                masked, solved = copy.deepcopy(dense), copy.deepcopy(dense)
                MaskEnforcer(prunable_parameters(masked, layers)).set(masks)
                start = time.perf_counter()
                reports = reconstruct(solved, masks, images, config.reconstruct.ridge, dense)
                seconds = time.perf_counter() - start
                models = {"dense": dense, "masked": masked, "reconstructed": solved}
                test, _ = accuracy(models, data.test_dataloader(), config.data.classes, device)
                line = dict(zip(("model", "data", "seed", "budget", "strategy"), key, strict=True))
                line |= {"sparsity": masks.sparsity, "test": test, "seconds": seconds, **summary_of(reports)}
                with RESULTS.open("a") as file:
                    file.write(json.dumps(line) + "\n")


def report() -> None:
    """Print the table of drops, mean and standard deviation over seeds, and draw the picture."""
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for text in RESULTS.read_text().splitlines():
        line = json.loads(text)
        groups[line["data"], line["model"], line["budget"]].append(line)
    headings = ["data", "model", "sparsity (%)", "seeds", "dense (%)"]
    kinds = ("masked", "reconstructed")
    headings += [f"drop, {kind}: {what}" for kind in kinds for what in ("mean of ten", "best", "worst")]
    headings += ["seconds"]
    rows = []
    for (data, model, budget), lines in sorted(groups.items()):
        seeds = sorted({line["seed"] for line in lines})
        cells = [data, model, f"{100 * budget:.0f}", str(len(seeds))]
        cells.append(f"{100 * statistics.fmean(line['test']['dense'] for line in lines):.2f}")
        for kind in kinds:
            by_strategy = defaultdict(list)
            for line in lines:
                by_strategy[line["strategy"]].append(100 * (line["test"]["dense"] - line["test"][kind]))
            by_seed = [
                statistics.fmean(100 * (x["test"]["dense"] - x["test"][kind]) for x in lines if x["seed"] == seed)
                for seed in seeds
            ]
            spread = f" ± {statistics.stdev(by_seed):.2f}" if len(seeds) > 1 else ""
            means = {name: statistics.fmean(drops) for name, drops in by_strategy.items()}
            low, high = min(means, key=lambda n: means[n]), max(means, key=lambda n: means[n])
            cells.append(f"{statistics.fmean(by_seed):.2f}{spread}")
            cells += [f"{means[name]:.2f} ({name})" for name in (low, high)]
        cells.append(f"{statistics.median(line['seconds'] for line in lines):.1f}")
        rows.append(cells)
    sys.stdout.write(table_of(headings, rows) + "\n")
    draw(groups)


def draw(groups: dict[Any, list[dict[str, Any]]]) -> None:
    """Draw accuracy before fine-tuning against sparsity: a panel per data set and model, a line per strategy."""
    from matplotlib.figure import Figure

    panels = sorted({key[:2] for key in groups})
    figure = Figure(figsize=(11, 4.2 * ((len(panels) + 1) // 2)), layout="constrained")
    axes = figure.subplots((len(panels) + 1) // 2, min(2, len(panels)), squeeze=False).flatten()
    for axis, (data, model) in zip(axes, panels, strict=False):
        for kind, colour in (("masked", "#D55E00"), ("reconstructed", "#0072B2")):
            lines = [line for key, found in groups.items() if key[:2] == (data, model) for line in found]
            for strategy in sorted({line["strategy"] for line in lines}):
                points = defaultdict(list)
                for line in lines:
                    if line["strategy"] == strategy:
                        points[100 * line["budget"]].append(100 * line["test"][kind])
                x = sorted(points)
                axis.plot(
                    x, [statistics.fmean(points[p]) for p in x], color=colour, alpha=0.5, marker="o", markersize=3
                )
            axis.plot([], [], color=colour, label=kind)
        dense = 100 * statistics.fmean(line["test"]["dense"] for line in lines)
        axis.axhline(dense, color="0.35", linestyle="--", linewidth=1, label="dense")
        axis.set(title=f"{model} on {data}", xlabel="sparsity (% of prunable weights)", ylabel="test accuracy (%)")
        axis.legend(loc="lower left")
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2:])
    elif sys.argv[1:] == ["report"]:
        report()
    else:
        sys.exit(__doc__)
