"""What a grid on ImageNet costs, from counted images and measured rates.

``python -m benchmarks.scale measure`` measures the rates of this machine (a GPU if there is one) for a Swin-Tiny, a
ResNet-50 and the small CNN of the check, and keeps them in ``benchmarks/results/scale.jsonl``.
``python -m benchmarks.scale check`` runs a small grid of the CNN, and compares its seconds with their prediction.
``python -m benchmarks.scale report`` writes the tables of docs/scale.md.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from benchmarks.pruning_runs import configured, result_of
from benchmarks.scale_rates import NETWORKS, Rates, measured_rates
from benchmarks.tables import fill_page
from mmp.data.module import ImageData
from mmp.errors import MmpError
from mmp.export.measure import processor
from mmp.files import write_text
from mmp.markdown import table_of

ROWS = RESULTS / "scale.jsonl"
PAGE = Path("docs/scale.md")
USAGE = "python -m benchmarks.scale measure, check or report"
HOUR = 3600.0
WORKERS = (1, 8, 30)  # devices that share the jobs
SCORED_ONCE = ("dense", "scores", "masks")  # steps that all jobs share


@dataclass(frozen=True)
class Grid:
    """A grid of configurations on a data set.

    Attributes:
        train: Number of training pictures, without the next two splits.
        validation: Number of validation pictures, which are read after every epoch and at the end.
        calibration: Number of calibration pictures, for the scores.
        test: Number of test pictures.
        resolved: Number of calibration pictures for least squares.
        configurations: Number of configurations.
        epochs: Number of epochs of fine-tuning.
    """

    train: int
    validation: int
    calibration: int
    test: int
    resolved: int = 512
    configurations: int = 30
    epochs: int = 20


# The 1,281,167 training pictures of ImageNet-1k in tenths, as data.validation and data.calibration divide them, and the
# 50,000 pictures of its validation set as test pictures.
IMAGENET = Grid(train=1_024_933, validation=128_117, calibration=128_117, test=50_000)


def seconds_of(grid: Grid, rates: Rates) -> dict[str, float]:
    """Return the seconds of each step of a grid on one device: of shared steps in all, of the others per configuration.

    A configuration is measured when it is masked, re-solved and fine-tuned.

    Args:
        grid: The grid.
        rates: The rates of the network on the device.
    """
    measured = grid.validation + grid.test
    return {
        "dense": measured * rates.forward,
        "scores": grid.calibration * rates.training,
        "masks": grid.configurations * rates.masks,
        "re-solving": rates.resolving(grid.resolved),
        "fine-tuning": grid.epochs * (grid.train * rates.training + grid.validation * rates.forward),
        "measuring": 3 * measured * rates.forward,
    }


def wall_of(grid: Grid, rates: Rates, workers: int, tuned: bool = True) -> float:
    """Return the seconds until a grid is done.

    Args:
        grid: The grid.
        rates: The rates of the network on one device.
        workers: Number of devices; each takes one configuration after the other.
        tuned: Whether configurations are fine-tuned.
    """
    seconds = seconds_of(grid, rates)
    once = sum(seconds[step] for step in SCORED_ONCE)
    job = sum(value for step, value in seconds.items() if step not in SCORED_ONCE and (tuned or step != "fine-tuning"))
    return once + math.ceil(grid.configurations / workers) * job


def read_rates() -> list[Rates]:
    """Return the rates of all machines that were measured."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.is_file() else []
    rows = [json.loads(line) for line in lines]
    return [Rates(**row["rates"]) for row in rows if "rates" in row]


def read_checks() -> list[dict[str, Any]]:
    """Return the results of all checks."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.is_file() else []
    return [row["check"] for row in map(json.loads, lines) if "check" in row]


def keep(row: dict[str, Any]) -> None:
    """Add a row to the file of results, in place of an earlier one of the same network and device."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()] if ROWS.is_file() else []
    others = [other for other in rows if _subject(other) != _subject(row)]
    write_text(ROWS, "".join(json.dumps(kept) + "\n" for kept in [*others, row]))


def _subject(row: dict[str, Any]) -> tuple[str, ...]:
    """Return what a row is about: rates of a network on a device, or the check on a device."""
    rates = row.get("rates")
    return (rates["network"], rates["where"]) if rates else (row["check"]["device"],)


def measure() -> None:
    """Measure the rates of this machine."""
    for name in NETWORKS:
        keep({"rates": asdict(measured_rates(name))})


def check() -> None:
    """Run a grid of the CNN on scikit-learn's digits, and keep its seconds beside the predicted ones."""
    rates = measured_rates("cnn")
    keep({"rates": asdict(rates)})
    seconds = dict.fromkeys(("scores", "reconstruct", "finetune", "evaluate"), 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        shared = (
            "model=cnn", "data=digits", "signal=product", "reconstruct=least_squares", "dense.epochs=1",
            "finetune.epochs=4", f"paths.cache={scratch}", "logger=none", "data.workers=0",
            "trainer.enable_progress_bar=false",
        )  # fmt: skip
        data = ImageData(configured(list(shared)).data, 0)
        counts = {split: len(indices) for split, indices in data.indices.items()}
        grid = Grid(**counts, resolved=counts["calibration"], configurations=3, epochs=4)
        for strategy in ("p30", "p50", "p70"):
            found = result_of([*shared, f"strategy={strategy}"], data)["seconds"]
            seconds = {step: value + found[step] for step, value in seconds.items()}
    expected, jobs = seconds_of(grid, rates), grid.configurations
    predicted = {
        "scores": expected["scores"],
        "reconstruct": jobs * expected["re-solving"],
        "finetune": jobs * expected["fine-tuning"],
        "evaluate": jobs * expected["measuring"] + expected["dense"],
    }
    keep({"check": {"device": processor(), "predicted": predicted, "measured": seconds}})


def grid_table(rates: Sequence[Rates]) -> str:
    """Return the table of what an ImageNet grid costs."""
    lines = []
    for rate in rates:
        if rate.image_size != 224:
            continue
        seconds = seconds_of(IMAGENET, rate)
        once = sum(seconds[step] for step in SCORED_ONCE)
        jobs = IMAGENET.configurations
        walls = [f"{_hours(wall_of(IMAGENET, rate, workers))}" for workers in WORKERS]
        untrained = _hours(wall_of(IMAGENET, rate, 1, tuned=False))
        steps = [_hours(jobs * seconds[step]) for step in ("re-solving", "measuring", "fine-tuning")]
        lines.append([rate.network, rate.where, _hours(once), *steps, untrained, *walls])
    headings = [
        "network", "device", "dense, scores, masks", "30 re-solved", "30 measured", "30 fine-tuned",
        "all without training",
        *(f"all, {workers} device{'s' * (workers > 1)}" for workers in WORKERS),
    ]  # fmt: skip
    return table_of(headings, lines) if lines else "Not measured."


def rates_table(rates: Sequence[Rates]) -> str:
    """Return the table of the measured rates."""
    lines = [
        [
            rate.network, f"{rate.image_size} px", rate.where, f"{rate.operations / 1e9:.2f}",
            f"{1 / rate.forward:,.1f}", f"{1 / rate.training:,.1f}", f"{rate.masks:.2f}", f"{rate.resolving(512):,.1f}",
        ]
        for rate in rates
    ]  # fmt: skip
    headings = [
        "network", "pictures", "device", "10^9 multiply-adds", "pictures/s, forward", "pictures/s, training",
        "s, masks of one configuration", "s, re-solving with 512 pictures",
    ]  # fmt: skip
    return table_of(headings, lines) if lines else "Not measured."


def check_table(checks: Sequence[dict[str, Any]]) -> str:
    """Return the table of predicted and measured seconds."""
    lines = [
        [
            step, check["device"], f"{check['predicted'][step]:.2f}", f"{seconds:.2f}",
            f"{seconds / check['predicted'][step]:.2f}",
        ]
        for check in checks
        for step, seconds in check["measured"].items()
    ]  # fmt: skip
    headings = ["step", "machine", "seconds, predicted", "seconds, measured", "measured / predicted"]
    return table_of(headings, lines) if lines else "Not measured."


def report() -> None:
    """Write the tables of docs/scale.md."""
    rates = read_rates()
    tables = {"grid": grid_table(rates), "rates": rates_table(rates), "check": check_table(read_checks())}
    fill_page(PAGE, {f"scale: {name}": table for name, table in tables.items()})


def _hours(seconds: float) -> str:
    """Return a duration as text: minutes below two hours, else hours."""
    return f"{seconds / 60:,.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:,.0f} h"


def main(words: Sequence[str]) -> None:
    """Run the command on the command line.

    Raises:
        MmpError: if there is no such command.
    """
    commands = {"measure": measure, "check": check, "report": report}
    if len(words) != 1 or words[0] not in commands:
        raise MmpError(f"{' '.join(words) or 'no command'}: use {USAGE}")
    commands[words[0]]()


if __name__ == "__main__":
    main(sys.argv[1:])
