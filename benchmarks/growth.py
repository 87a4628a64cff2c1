"""The growth of time and memory: of plan, scores and masks with the weights, of a report with the configurations.

``python -m benchmarks.growth`` measures each point in its own process, prints the exponents (1 is linear), and draws
docs/images/growth.png. The models are ViTs with 1M to 300M weights; the gradient uses eight images of 32x32. The report
is about invented results, one run per configuration.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from benchmarks.memory import GIBI, MEBI, in_use
from benchmarks.timing import Claim, table
from mmp.plan import make_plan
from mmp.pruning.calibration_statistics import collect
from mmp.pruning.layers.layer import count_weights
from mmp.pruning.layers.prunable import prunable_layers, prunable_parameters
from mmp.pruning.masks import make_grid
from mmp.pruning.signals import Gradient, Magnitude, score
from mmp.report.write import write_report
from mmp.runs.memory import peak_memory, reset_peak_memory

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "growth.png"
SHAPES = ((128, 5), (192, 7), (256, 12), (512, 10), (768, 14), (1024, 24))  # width and depth
SIZES = (30, 100, 300, 1000, 3000)
MOST = 1.15  # largest exponent
REPEATS, ENOUGH = 3, 20.0  # repetitions of a point, and the seconds after which no other one starts

Route = Callable[[], Any]


def vit(width: int, depth: int) -> nn.Module:
    """Return a ViT for small images."""
    return VisionTransformer(
        img_size=32, patch_size=4, embed_dim=width, depth=depth, num_heads=width // 64, num_classes=10
    )


def plan(width: int, depth: int) -> tuple[float, Route]:
    """Return the number of weights, and a function that makes the plan of a model on the meta device."""
    with torch.device("meta"):
        model = vit(width, depth)
    return weights_of(model), lambda: make_plan(model)


def magnitude(width: int, depth: int) -> tuple[float, Route]:
    """Return the number of weights, and a function that scores them by magnitude."""
    model = vit(width, depth)
    parameters = prunable_parameters(model, prunable_layers(model))
    return weights_of(model), lambda: score(Magnitude(), parameters, {}, normalised=True)


def gradient(width: int, depth: int) -> tuple[float, Route]:
    """Return the number of weights, and a function that computes gradients and scores the weights by them."""
    model = vit(width, depth)
    parameters = prunable_parameters(model, prunable_layers(model))
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(10, (4,))) for _ in range(2)]
    loss, signal = nn.CrossEntropyLoss(), Gradient()
    return weights_of(model), lambda: score(
        signal, parameters, collect(model, parameters, batches, loss, signal.needs), normalised=True
    )


def masks(width: int, depth: int) -> tuple[float, Route]:
    """Return the number of weights, and a function that makes the masks of all strategies."""
    with torch.device("meta"):
        model = vit(width, depth)
    scores = {layer.name: torch.rand(layer.shape) for layer in prunable_layers(model)}
    sparsities = make_plan(model).sparsities
    return weights_of(model), lambda: make_grid(scores, sparsities)


def report(folder: Path, size: int) -> tuple[float, Route]:
    """Return the number of configurations, and a function that writes their report."""
    sys.path.append(str(ROOT / "tests" / "helpers"))
    from result_files import full_sweep

    for part in range(math.ceil(size / 30)):
        full_sweep(folder / str(part), seeds=[0])
    paths = sorted(folder.rglob("result.json"))
    for path in paths[size:]:
        path.unlink()
    for i, path in enumerate(paths[:size]):
        content = json.loads(path.read_text())
        rate = f"finetune.learning_rate={1e-4 * (1 + i // 30):.4f}"
        content |= {"configuration": f"{i // 30:06d}", "overrides": [*content["overrides"], rate]}
        path.write_text(json.dumps(content))
    return size, lambda: write_report(folder)


def weights_of(model: nn.Module) -> int:
    """Return the number of prunable weights."""
    return count_weights(prunable_layers(model))


SUBJECTS: dict[str, Callable[..., tuple[float, Route]]] = {
    "plan": plan,
    "magnitude": magnitude,
    "gradient": gradient,
    "masks": masks,
    "report": report,
}


def point(subject: str, *sizes: str) -> dict[str, float]:
    """Return the size, the seconds and the additional peak bytes of one point."""
    with tempfile.TemporaryDirectory() as folder:
        make = partial(report, Path(folder)) if subject == "report" else SUBJECTS[subject]
        make_plan(vit(64, 1))  # some libraries are loaded at first use
        if subject == "report":
            with tempfile.TemporaryDirectory() as small:
                report(Path(small), 1)[1]()
        size, route = make(*map(int, sizes))
        before, seconds = in_use("cpu"), list[float]()
        reset_peak_memory()
        while len(seconds) < REPEATS and sum(seconds) < ENOUGH:
            in_use("cpu")  # returns freed memory to the system, so that every repetition starts in the same state
            start = time.perf_counter()
            route()
            seconds.append(time.perf_counter() - start)
        return {"size": size, "seconds": min(seconds), "bytes": max(peak_memory()["host"] - before, 1)}


def in_process(subject: str, *sizes: int) -> dict[str, float]:
    """Measure a point in a new process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.growth", subject, *map(str, sizes)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent b of a fit value = a * size^b, or that between the last two points if it is larger."""
    x, y = np.log(sizes), np.log(values)
    return max(float(np.polyfit(x, y, 1)[0]), (y[-1] - y[-2]) / (x[-1] - x[-2]))


def claims_of(subject: str, points: Sequence[dict[str, float]]) -> list[Claim]:
    """Return the claims on a subject's time and memory."""
    sizes = [one["size"] for one in points]
    unit = "configurations" if subject == "report" else "weights"
    label = f"{subject}, {sizes[0]:,.0f} to {sizes[-1]:,.0f} {unit}"
    seconds, memory = ([one[what] for one in points] for what in ("seconds", "bytes"))
    notes = f"{seconds[0]:.3g} to {seconds[-1]:.3g} s", f"{memory[0] / MEBI:.3g} to {memory[-1] / MEBI:,.0f} MiB"
    return [
        Claim(f"{label}: exponent of {what}", [exponent(sizes, values)], most=MOST, note=note)
        for what, values, note in (("time", seconds, notes[0]), ("memory", memory, notes[1]))
    ]


def draw(found: dict[str, list[dict[str, float]]]) -> None:
    """Draw seconds and memory against size on logarithmic axes, with a line of slope 1 for comparison."""
    from matplotlib.figure import Figure

    colours = dict(zip(SUBJECTS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"), strict=True))
    figure = Figure(figsize=(11, 8), layout="constrained")
    kinds = (("seconds", 1, "time (s)"), ("bytes", GIBI, "peak memory (GiB)"))
    for row, (what, scale, label) in zip(figure.subplots(2, 2, sharex="col"), kinds, strict=True):
        for axis, subjects in zip(row, ([s for s in SUBJECTS if s != "report"], ["report"]), strict=True):
            for subject in subjects:
                x = [one["size"] for one in found[subject]]
                y = [one[what] / scale for one in found[subject]]
                axis.loglog(x, y, color=colours[subject], marker="o", markersize=4, label=subject)
                axis.loglog([x[0], x[-1]], [y[-1] * x[0] / x[-1], y[-1]], color="0.6", linestyle="--", linewidth=1)
            axis.plot([], [], color="0.6", linestyle="--", linewidth=1, label="linear, through the last point")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
            axis.legend()
        if what == "bytes":
            row[0].set_xlabel("prunable weights")
            row[1].set_xlabel("configurations")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Measure all points, print the table and draw the picture."""
    found = {subject: [in_process(subject, *shape) for shape in SHAPES] for subject in SUBJECTS if subject != "report"}
    found["report"] = [in_process("report", size) for size in SIZES]
    sys.stdout.write(table([claim for subject in SUBJECTS for claim in claims_of(subject, found[subject])]) + "\n")
    draw(found)


if __name__ == "__main__":
    torch.manual_seed(0)
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] in SUBJECTS:
        sys.stdout.write(json.dumps(point(*sys.argv[1:])))
    else:
        sys.exit(__doc__)
