"""Pruning before any training, the field's benchmark: ResNet-20 on CIFAR-10, by every method, without labels.

``python -m benchmarks.oneshot measure network=resnet20 checkpoint=FILE root=FOLDER`` prunes the network of a checkpoint
by all methods, re-solves it layer by layer and jointly (briefly and at length), and appends a row per run to
``benchmarks/results/oneshot.jsonl``. ``root`` is the folder of the pictures: of CIFAR-10
(:mod:`benchmarks.cifar10_sheets` can make it), or of ImageNet for EfficientNet-Lite0
(:mod:`benchmarks.imagenet_pictures`).

With ``seeds=0 sparsities=0.8,0.9 methods=LAMP+obs solved=joint`` it measures only these. ``images=128,256`` states
numbers of calibration pictures, and ``steps=100,400`` numbers of steps of joint tuning. What is measured is skipped. A
process that is stopped loses only its current run.

Several processes can share the work: they append to one file, and ``share=0/4`` is every fourth run, from the first.
``rows=FILE`` names another file than the usual one, and
``python -m benchmarks.oneshot merge FILE...`` adds the rows of such files to it. ``cache=FOLDER`` names the folder of
scores and of other things that runs share. A run uses a GPU if there is one.

``python -m benchmarks.oneshot report`` writes the tables and the picture of docs/oneshot.md.

Every run uses the code of ``prune.py`` with ``finetune=none``. A seed is one of the calibration pictures: the weights
are given. Validation pictures choose; the test pictures are read at the end.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

from benchmarks.oneshot_methods import SOLVED, methods
from benchmarks.oneshot_networks import RUN
from benchmarks.oneshot_report import write_report
from benchmarks.oneshot_request import KEYS, ROWS, Request
from benchmarks.pruning_runs import configured, result_of
from benchmarks.row_files import Row, append, is_measured, origin, read_rows, run_command, share_of
from mmp.config.identity import digest, identity, settings_of
from mmp.data.module import ImageData
from mmp.runs.memory import keep_freed_memory

USAGE = "python -m benchmarks.oneshot measure network=... checkpoint=FILE root=FOLDER, merge FILE..., or report"


def measure(request: Request) -> None:
    """Measure the missing runs, and write a row after each."""
    for seed, images in product(request.seeds, request.images):
        for row in rows_of(request, seed, images):
            append(request.rows, [row])


def rows_of(request: Request, seed: int, images: int) -> Iterator[Row]:
    """Yield a row for each missing run of a seed; rows with other shared settings do not count as measured."""
    common = (
        *RUN, *request.network.settings, f"model.checkpoint={request.checkpoint}", f"seed={seed}",
        f"paths.cache={request.cache}", f"reconstruct.images={images}", f"reconstruct.tuning.images={images}",
    )  # fmt: skip
    rooted = f"data.root={request.root}"
    data = request.network.data(configured([*common, rooted]).data, seed, images)
    ways = [
        (solved, steps) for solved, steps in product(request.solved, request.steps) if solved == "joint" or not steps
    ]
    settings = {
        way: (*common, *SOLVED[way[0]], *([f"reconstruct.tuning.steps={way[1]}"] if way[1] else [])) for way in ways
    }
    protocols = {way: protocol_of(settings[way], data) for way in ways}
    runs = (
        {
            "network": request.name, "seed": seed, "solved": way[0], "sparsity": sparsity, "method": method,
            "images": images, "steps": way[1], "protocol": protocols[way],
        }
        for way, method, sparsity in product(ways, request.methods, request.sparsities)
    )  # fmt: skip
    for known in share_of(runs, request.share):
        if not is_measured(known, read_rows([ROWS, request.rows], KEYS)):
            run = (*settings[known["solved"], known["steps"]], rooted, *methods()[known["method"]])
            result = result_of([*run, f"budget={known['sparsity']}"], data)
            yield known | measured_of(result) | origin()


def protocol_of(settings: Iterable[str], data: ImageData) -> str:
    """Return a hash of the settings that runs share, and of their pictures; it is the same on every machine."""
    shared = identity(settings_of(configured([*settings, "data.root=data"])))
    return digest([shared, data.fingerprint])[:8]


def measured_of(result: dict[str, Any]) -> Row:
    """Return what a row keeps of a run's result."""
    search = result["search"]
    return {
        "reached": result["sparsity"],
        "accuracy": result["accuracy"],
        "masks": result["masks_hash"][:16],
        "tuning": result["reconstruction"].get("joint"),
        "cached": {"scores": result["scores"]["cached"], "search": search and search["cached"]},
        "seconds": {phase: round(value, 2) for phase, value in result["seconds"].items()},
    }


def main(words: Sequence[str]) -> None:
    """Run the command on the command line."""
    run_command(words, lambda asked: measure(Request.of(asked)), write_report, ROWS, KEYS, USAGE)


if __name__ == "__main__":
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    keep_freed_memory()  # as runs do
    main(sys.argv[1:])
