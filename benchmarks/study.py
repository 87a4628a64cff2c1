"""The study: the method against the field's criteria on CIFAR-10, after a full fine-tuning.

``python -m benchmarks.study measure network=resnet20 checkpoint=FILE root=FOLDER`` prunes the network of a checkpoint
by every method, re-solves it or not, fine-tunes it until the learning rate is zero, and appends a row per run to
``benchmarks/results/study.jsonl``. ``root`` is the folder with CIFAR-10 (:mod:`benchmarks.cifar10_sheets` can make it).

With ``seeds=0 sparsities=0.9 parts=ours+baselines`` it measures only these. What is measured is skipped, and a process
that is stopped loses only its current run. Several processes can share the work: ``share=0/4`` is every fourth run,
from the first. ``rows=FILE`` names another file than the usual one, and ``python -m benchmarks.study merge FILE...``
adds the rows of such files to it. ``cache=FOLDER`` names the folder of what runs share. A run uses a GPU if there is
one.

``python -m benchmarks.study report`` writes the tables of docs/study.md and draws its picture.

Every run uses the code of ``prune.py``. The dense weights are given. A seed decides which pictures calibrate and
validate, and the order of the training pictures. Validation pictures choose; test pictures are read at the end.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, study_runs
from benchmarks.pruning_runs import configured, result_of
from benchmarks.row_files import Row, append, is_measured, origin, read_rows, run_command, share_of
from benchmarks.study_report import write_report
from benchmarks.study_runs import SPARSITIES, UNPRUNED, Run, parts
from mmp.config.identity import digest, identity, settings_of
from mmp.data.module import ImageData
from mmp.errors import MmpError
from mmp.runs.memory import keep_freed_memory

ROWS = RESULTS / "study.jsonl"
KEYS = ("network", "seed", "sparsity", "method", "solved", "protocol")  # decide what is measured
SEEDS = (0, 1, 2)
_NEEDED = {"network", "checkpoint", "root"}
_OPTIONS = {"rows", "cache", "share"}
USAGE = "python -m benchmarks.study measure network=... checkpoint=FILE root=FOLDER, merge FILE..., or report"


def measure(words: Sequence[str]) -> None:
    """Measure the missing runs, and write a row after each."""
    given = dict(word.partition("=")[::2] for word in words)
    rows = Path(given.get("rows", ROWS))
    for row in rows_of(given, wanted_of(given), rows):
        append(rows, [row])


def wanted_of(given: Mapping[str, str]) -> Iterator[Row]:
    """Return what identifies each run that a command line asks for.

    Args:
        given: The words of the command line: their keys and values.

    Raises:
        MmpError: if a key or a value is unknown, or a key is missing.
    """
    network = given.get("network", "")
    levels = SPARSITIES.get(network, ())
    every = {"seeds": [*map(str, SEEDS)], "sparsities": [*map(str, levels)], "parts": [*parts()]}
    chosen = {key: given[key].split("+" if key == "parts" else ",") if key in given else every[key] for key in every}
    unknown = any(set(chosen[key]) - set(every[key]) for key in every)
    if unknown or not levels or given.keys() - every.keys() - _OPTIONS != _NEEDED:
        raise MmpError(
            f"{' '.join(f'{key}={value}' for key, value in given.items())}: the keys are "
            f"network={'|'.join(SPARSITIES)} checkpoint=FILE root=FOLDER seeds={','.join(every['seeds'])} "
            f"sparsities=0.8,0.9 parts={'+'.join(every['parts'])} rows=FILE cache=FOLDER share=0/4"
        )
    runs = planned(network, [*map(int, chosen["seeds"])], [*map(float, chosen["sparsities"])], chosen["parts"])
    return share_of(runs, given.get("share", "0/1"))


def planned(network: str, seeds: Sequence[int], sparsities: Sequence[float], names: Sequence[str]) -> Iterator[Row]:
    """Yield what identifies each run, in the order in which runs are measured."""
    for part in names:
        for run, sparsity, seed in product(parts()[part], sparsities, seeds):
            if run.method != UNPRUNED or sparsity == sparsities[0]:
                level = 0.0 if run.method == UNPRUNED else sparsity
                yield {"network": network, "seed": seed, "sparsity": level, "method": run.method, "solved": run.solved}


def rows_of(given: Mapping[str, str], wanted: Iterator[Row], rows: Path) -> Iterator[Row]:
    """Yield a row for each run that is not measured; rows with other settings do not count as measured.

    Args:
        given: The words of the command line.
        wanted: What identifies the runs.
        rows: The file of new rows; a run of the usual file is not repeated either.
    """
    place = (f"data.root={given['root']}", f"paths.cache={given.get('cache', 'results/cache')}")
    read: dict[int, ImageData] = {}
    for run in wanted:
        seed = run["seed"]
        shared = study_runs.shared_settings(given["network"], given["checkpoint"], seed)
        settings = (*shared, *study_runs.settings_of_run(Run(run["method"], run["solved"]), run["sparsity"]))
        if seed not in read:
            read[seed] = ImageData(configured([*shared, *place]).data, seed)
        data = read[seed]
        known = {**run, "protocol": digest([decisive(settings), data.fingerprint])[:8]}
        if is_measured(known, read_rows([ROWS, rows], KEYS)):
            continue
        result = result_of([*settings, *place], data)
        yield {
            **known,
            "recipe": recipe_of(shared),
            "reached": result["sparsity"],
            "accuracy": result["accuracy"],
            "masks": result["masks_hash"][:16],
            "compiled": result.get("compiled", False),
            "seconds": {phase: round(value, 2) for phase, value in result["seconds"].items()},
            **origin(),
        }


def decisive(settings: Sequence[str]) -> dict[str, Any]:
    """Return what decides the numbers of a run; it is the same on every machine."""
    return identity(settings_of(configured([*settings, "data.root=data"])))


def recipe_of(shared: Sequence[str]) -> str:
    """Return a hash of the settings that all runs of a network share, whatever their seed."""
    return digest({key: value for key, value in decisive(shared).items() if key != "seed"})[:8]


def main(words: Sequence[str]) -> None:
    """Run the command on the command line."""
    run_command(words, measure, write_report, ROWS, KEYS, USAGE)


if __name__ == "__main__":
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    keep_freed_memory()  # as runs do
    main(sys.argv[1:])
