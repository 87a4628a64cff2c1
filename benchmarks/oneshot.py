"""Pruning before any training, the field's benchmark: ResNet-20 on CIFAR-10, by every method, without labels.

``python -m benchmarks.oneshot measure network=resnet20 checkpoint=FILE root=FOLDER`` prunes the network of a checkpoint
by all methods, re-solves it layer by layer and jointly, and appends a row per run to
``benchmarks/results/oneshot.jsonl``. ``root`` is the folder of CIFAR-10 (:mod:`benchmarks.cifar10_sheets` can make it).
With ``seeds=0 sparsities=0.8,0.9 methods=LAMP+obs solved=joint`` it measures only these, so several processes can share
the work. What is measured is skipped.
``python -m benchmarks.oneshot report`` prints a table for each network.

Every run uses the code of ``prune.py`` with ``finetune=none``. A seed is one of the calibration pictures: the weights
are given. Validation pictures choose; the test pictures are read at the end.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks import RESULTS
from benchmarks.study import configured, result_of
from benchmarks.study_report import spread
from mmp.config.choices import choices_of
from mmp.config.identity import digest, identity, settings_of
from mmp.data.module import ImageData
from mmp.errors import MmpError
from mmp.markdown import table_of

ROWS = RESULTS / "oneshot.jsonl"
SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SEEDS = (0, 1, 2)
COLUMNS = ("masked", "layer-wise", "joint")
STRATEGY_LINES = ("strategies, mean", "strategies, best on validation")
SOLVED = {"layer-wise": "reconstruct=least_squares", "joint": "reconstruct=joint"}

# 3,000 of the 50,000 training pictures calibrate, 5,000 validate. The rule for layers under 10,000 weights is off,
# because the baselines have no such rule and these networks have few larger layers.
RUN = (
    "model=own", "data=cifar10", "data.calibration=0.06", "data.validation=0.1", "data.augment=null", "data.workers=0",
    "finetune=none", "ranges.constraints.small_below=0", "trainer.enable_progress_bar=false", "logger=none",
)  # fmt: skip

Row = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """A network of CIFAR-10 that others trained.

    Attributes:
        arguments: Arguments of :class:`benchmarks.cifar_resnet.CifarResNet`.
        mean: Mean of each channel of the images that it was trained with.
        std: Their standard deviation.
    """

    arguments: Mapping[str, object]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def settings(self) -> list[str]:
        """Return the settings of a run."""
        return [
            "model._target_=benchmarks.cifar_resnet.CifarResNet",
            *(f"+model.kwargs.{key}={value}" for key, value in self.arguments.items()),
            f"model.mean={list(self.mean)}",
            f"model.std={list(self.std)}",
            "model.image_size=32",
        ]


HALF = (0.5, 0.5, 0.5)
WITHOUT = {"projection": False, "classifier": "linear"}
NETWORKS = {
    "resnet20": Network({"depth": 20}, HALF, HALF),  # the checkpoint of the papers, from Distiller
    "resnet20_zeros": Network({"depth": 20, **WITHOUT}),
    "resnet56_zeros": Network({"depth": 56, **WITHOUT}),
}


def methods() -> dict[str, tuple[str, ...]]:
    """Return the settings of each method."""
    return {
        "MAG": ("criterion=mag",),
        "LAMP": ("criterion=lamp",),
        "ERK": ("criterion=erk",),
        "obs": ("signal=obs", "allocation=lamp"),
        "searched": ("signal=obs", "allocation=searched"),
        **{f"strategy {name}": ("signal=magnitude", f"strategy={name}") for name in choices_of("strategy")},
    }


def read_rows() -> list[Row]:
    """Return all measured rows."""
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()] if ROWS.is_file() else []


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        network: Name of the network.
        checkpoint: File of its weights.
        root: Folder of CIFAR-10.
        seeds: Seeds of the splits.
        sparsities: Shares of the prunable weights to remove.
        methods: Names of methods.
        solved: Names of ways to re-solve.
    """

    network: str
    checkpoint: str
    root: str
    seeds: Sequence[int]
    sparsities: Sequence[float]
    methods: Sequence[str]
    solved: Sequence[str]

    @classmethod
    def of(cls, words: Sequence[str]) -> Request:
        """Return the request of a command line.

        Raises:
            MmpError: if a key or a value is unknown, or a key is missing.
        """
        given = dict(word.partition("=")[::2] for word in words)
        known: dict[str, tuple[str, Sequence[str]]] = {
            "seeds": (",", [str(seed) for seed in SEEDS]),
            "sparsities": (",", [str(sparsity) for sparsity in SPARSITIES]),
            "methods": ("+", list(methods())),
            "solved": (",", list(SOLVED)),
        }
        chosen = {key: given[key].split(sign) if key in given else every for key, (sign, every) in known.items()}
        needed = {"network", "checkpoint", "root"}
        wrong = (given.keys() - known.keys()) ^ needed
        for key, (_, every) in known.items():
            wrong |= set(chosen[key]) - set(every)
        if wrong or given["network"] not in NETWORKS:
            listed = " ".join(f"{key}={sign.join(every)}" for key, (sign, every) in known.items())
            raise MmpError(
                f"{' '.join(words)}: the keys are network={'|'.join(NETWORKS)} checkpoint=FILE root=FOLDER {listed}"
            )
        return cls(
            given["network"], given["checkpoint"], given["root"], [int(seed) for seed in chosen["seeds"]],
            [float(sparsity) for sparsity in chosen["sparsities"]], chosen["methods"], chosen["solved"],
        )  # fmt: skip


def measure(request: Request, cache: str = "results/cache") -> None:
    """Measure the missing runs, and write a row after each."""
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    for seed in request.seeds:
        for row in rows_of(request, seed, cache):
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def rows_of(request: Request, seed: int, cache: str) -> Iterator[Row]:
    """Yield a row for each missing run of a seed; rows with other shared settings do not count as measured."""
    common = (
        *RUN, *NETWORKS[request.network].settings(), f"model.checkpoint={request.checkpoint}",
        f"data.root={request.root}", f"seed={seed}", f"paths.cache={cache}",
    )  # fmt: skip
    shared = configured(common)
    data = ImageData(shared.data, seed)
    for solved in request.solved:
        settings = (*common, SOLVED[solved])
        protocol = digest(identity(settings_of(configured(settings))))[:8]
        for sparsity in request.sparsities:
            for method in request.methods:
                known = {
                    "network": request.network, "seed": seed, "solved": solved, "sparsity": sparsity,
                    "method": method, "protocol": protocol,
                }  # fmt: skip
                if any(known.items() <= row.items() for row in read_rows()):
                    continue
                result = result_of([*settings, *methods()[method], f"budget={sparsity}"], data)
                yield {
                    **known,
                    "reached": result["sparsity"],
                    "accuracy": result["accuracy"],
                    "masks": result["masks_hash"][:16],
                    "seconds": {phase: round(value, 2) for phase, value in result["seconds"].items()},
                }


def report(rows: Sequence[Row]) -> str:
    """Return a table for each network: test accuracy in percent, mean and standard deviation over the seeds.

    Of the strategies there are two lines: their mean, and the one with the best mean accuracy on validation pictures.
    """
    parts = []
    for network in dict.fromkeys(row["network"] for row in rows):
        found: dict[tuple[str, str, float], list[Row]] = defaultdict(list)
        for row in (row for row in rows if row["network"] == network):
            found[row["method"], row["solved"], row["sparsity"]].append(row)
        lines = []
        for method, solved in product((*(m for m in methods() if not is_strategy(m)), *STRATEGY_LINES), COLUMNS):
            every = [chosen(found, method, solved, sparsity) for sparsity in SPARSITIES]
            cells = [spread(values) if values else "" for values in every]
            if any(cells):
                lines.append([method, solved, *cells])
        dense = next(row["accuracy"]["dense"]["test"] for row in rows if row["network"] == network)
        headings = ["method", "solved", *(f"{100 * sparsity:.0f} %" for sparsity in SPARSITIES)]
        parts.append(f"{network}, dense {100 * dense:.2f} %\n\n{table_of(headings, lines)}")
    return "\n\n".join(parts)


def is_strategy(method: str) -> bool:
    """Return whether a method is one of the strategies."""
    return method.startswith("strategy ")


def chosen(
    found: Mapping[tuple[str, str, float], Sequence[Row]], method: str, column: str, sparsity: float
) -> list[float]:
    """Return the test accuracies of a line of the table at one sparsity, one for each seed, in percent."""
    solved = "layer-wise" if column == "masked" else column
    stage = "pruned" if column == "masked" else "reconstructed"
    if method not in STRATEGY_LINES:
        return [100 * row["accuracy"][stage]["test"] for row in found.get((method, solved, sparsity), ())]
    every = {
        name: found[name, solved, sparsity]
        for name in methods()
        if is_strategy(name) and (name, solved, sparsity) in found
    }
    if not every:
        return []
    if method == STRATEGY_LINES[0]:
        by_seed: dict[int, list[float]] = defaultdict(list)
        for row in (row for rows in every.values() for row in rows):
            by_seed[row["seed"]].append(100 * row["accuracy"][stage]["test"])
        return [statistics.mean(values) for values in by_seed.values()]
    best = max(every.values(), key=lambda rows: statistics.mean(row["accuracy"][stage]["validation"] for row in rows))
    return [100 * row["accuracy"][stage]["test"] for row in best]


def main(words: Sequence[str]) -> None:
    """Run the command on the command line.

    Raises:
        MmpError: if there is no such command.
    """
    if words[:1] == ["measure"]:
        measure(Request.of(words[1:]))
    elif list(words) == ["report"]:
        sys.stdout.write(report(read_rows()) + "\n")
    else:
        raise MmpError("python -m benchmarks.oneshot measure network=... checkpoint=FILE root=FOLDER, then report")


if __name__ == "__main__":
    main(sys.argv[1:])
