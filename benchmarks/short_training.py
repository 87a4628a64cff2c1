"""What masks are worth before training: the method against every baseline, with equal and very short fine-tuning.

``python -m benchmarks.short_training measure`` trains missing dense models, measures every missing run of `parts` for
each model, sparsity and seed, and appends a row per run to ``benchmarks/results/short_training.jsonl``. With
``subjects=levit-85 seeds=0,1 parts=baselines+recipes`` it measures only these, so several processes can share the work.
``python -m benchmarks.short_training report`` writes the tables of docs/short_training.md and draws its picture.

Every run uses the code of ``prune.py``: one dense model, one calibration split, one recipe, test data only at the end.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from benchmarks.pruning_runs import configured, result_of
from benchmarks.short_training_report import SOLVED, write_report
from mmp.config.choices import choices_of
from mmp.config.identity import OF_DENSE, digest, identity, settings_of
from mmp.data.module import ImageData
from mmp.errors import MmpError
from mmp.tensors import save_tensors
from mmp.training.dense import dense_model

ROWS = RESULTS / "short_training.jsonl"
SEEDS = (0, 1, 2)

# Settings of all runs. A fine-tuning has 75 steps of 128 images, a sixth of an epoch: one core can do hundreds of runs.
# The rule for layers under 10,000 weights is off, because these models are small and the baselines have no such rule.
RUN = (
    "data=fashion_mnist", "trainer.limit_train_batches=75", "finetune=paper", "finetune.epochs=1",
    "ranges.constraints.small_below=0", "reconstruct.rows_per_column=0", "trainer.enable_progress_bar=false",
    "logger=none",
)  # fmt: skip

# The parts that the claims need; other parts are not measured at every sparsity.
CLAIMS = ("baselines", "magnitude", "obs_fisher, re-solved", "baselines, re-solved", "allocations, re-solved")


@dataclass(frozen=True)
class Subject:
    """A model at a sparsity.

    Attributes:
        model: Name of the dense model.
        settings: Settings of the model and its images.
        sparsity: The sparsity of every run.
        table: Settings of the paper's range table for this architecture, for comparison with the generic table.
        parts: The measured parts of the study; all if empty.
    """

    model: str
    settings: tuple[str, ...]
    sparsity: float
    table: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


_CNN = ("cnn", ("model=cnn",))
_LEVIT = ("levit", ("model=levit", "data.image_size=32"))
SUBJECTS = {
    "cnn-90": Subject(*_CNN, 0.90, ("ranges=resnet", "ranges.strict=false")),  # it has two of the four stages
    "levit-85": Subject(*_LEVIT, 0.85, ("ranges=levit",)),
    "levit-92": Subject(*_LEVIT, 0.92, parts=CLAIMS),
    "cnn-95": Subject(*_CNN, 0.95, parts=CLAIMS),
}
DENSE = ("dense.epochs=10",)

Row = dict[str, Any]


def strategies() -> list[str]:
    """Return the strategies of the paper without p50, which has the same masks as balanced."""
    return [name for name in choices_of("strategy") if name != "p50"]


def criteria() -> list[str]:
    """Return all criteria."""
    return [name for name in choices_of("criterion") if name != "none"]


# Recipes for the same masks, each with 75 steps: the paper's recipe, alone and with one part of the strong recipe; and
# the strong recipe, alone and with one part removed or added.
RECIPES = {
    "no training": ("finetune=none", "finetune.epochs=0"),
    "paper": ("finetune=paper",),
    "paper, at 1e-3": ("finetune=paper", "finetune.learning_rate=1e-3"),
    "paper, at the strong rate": ("finetune=paper", "finetune.learning_rate=2e-3"),
    "paper + distillation": ("finetune=paper", "finetune.distillation=0.5"),
    "paper + averaging": ("finetune=paper", "finetune.averaging=0.99"),
    "paper + warm-up and cosine": (
        "finetune=paper", "finetune.scheduler=cosine", "finetune.by_step=true", "finetune.warmup_epochs=0.25",
    ),
    "strong": ("finetune=strong",),
    "strong, at 4e-3": ("finetune=strong", "finetune.learning_rate=4e-3"),
    "strong, no distillation": ("finetune=strong", "finetune.distillation=0"),
    "strong, no averaging": ("finetune=strong", "finetune.averaging=0"),
    "strong, no warm-up": ("finetune=strong", "finetune.warmup_epochs=0"),
    "strong, layer decay 0.9": ("finetune=strong", "finetune.layer_decay=0.9"),
    "strong, norms re-estimated": ("finetune=strong", "finetune.reestimate_norms=true"),
    "strong, gradual masks": (
        "finetune=strong", "finetune.epochs=3", "trainer.limit_train_batches=25",
        "schedule=stepwise", "schedule.epochs=[0,1]", "schedule.fractions=[0.8,1.0]",
    ),
}  # fmt: skip


# Changes of the ranges, each measured for three strategies.
ABLATIONS = {
    "layers under 10,000 weights kept": ("ranges.constraints.small_below=10000",),
    "classifier spared": ("ranges.rules.12.range=[0.0,0.0]",),
    "classifier pruned hard": ("ranges.rules.12.range=[0.9,0.95]",),
    "all layers from 0 to 95 %": tuple(f"ranges.rules.{i}.range=[0.0,0.95]" for i in range(13)),
}
ABLATED = ("balanced", "p90", "proportional")


def ablations(subject: Subject) -> dict[str, tuple[str, ...]]:
    """Return the settings of each change of the ranges, by the change's name."""
    return ABLATIONS | ({"the paper's table": subject.table} if subject.table else {})


def parts(subject: Subject) -> dict[str, list[tuple[str, ...]]]:
    """Return the runs of each part of the study as settings; the most important part comes first."""
    every = strategies()
    obs_fisher = ("signal=obs_fisher", SOLVED)
    found = {
        "baselines": [(f"criterion={name}",) for name in criteria()],
        "magnitude": [("signal=magnitude", f"strategy={name}") for name in choices_of("strategy")],
        "obs_fisher, re-solved": [("signal=obs_fisher", f"strategy={name}", SOLVED) for name in every],
        "baselines, re-solved": [
            (f"criterion={name}", SOLVED) for name in ("mag", "lamp", "fisher", "erk", "snip", "taylor")
        ],
        "allocations, re-solved": [
            ("allocation=searched", *obs_fisher),
            ("allocation=lamp", *obs_fisher),
            ("allocation=fisher", *obs_fisher),
        ],
        "unpruned": [("criterion=mag", "budget=0")],
        "recipes": [("criterion=mag", *changed) for changed in RECIPES.values()],
        "product": [("signal=product", f"strategy={name}") for name in every],
        "gradient": [("signal=gradient", f"strategy={name}") for name in every],
        "magnitude, re-solved": [("signal=magnitude", f"strategy={name}", SOLVED) for name in every],
        "strong": [
            *((f"criterion={name}", "finetune=strong") for name in ("mag", "lamp", "fisher", "erk", "snip", "taylor")),
            *(("signal=magnitude", f"strategy={name}", "finetune=strong") for name in every),
        ],
        "observed": [("signal=magnitude", f"strategy={name}", "ranges.source=observed") for name in every],
        "ablations": [
            ("signal=magnitude", f"strategy={name}", *changed)
            for changed in ablations(subject).values()
            for name in ABLATED
        ],
    }
    return {part: runs for part, runs in found.items() if part in (subject.parts or found)}


def read_rows() -> list[Row]:
    """Return all measured rows."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []


def measure(arguments: list[str]) -> None:
    """Measure the missing runs.

    Raises:
        MmpError: for an argument other than subjects, seeds, parts and paths.cache, or an unknown subject or part.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    subjects = given.pop("subjects", ",".join(SUBJECTS)).split(",")
    seeds = [int(seed) for seed in given.pop("seeds", ",".join(map(str, SEEDS))).split(",")]
    every = list(parts(Subject("", (), 0)))
    chosen = given.pop("parts", "+".join(every)).split("+")
    cache = given.pop("paths.cache", "results/cache")
    if given or set(subjects) - SUBJECTS.keys() or set(chosen) - set(every):
        raise MmpError(f"{arguments}: choose subjects={','.join(SUBJECTS)} seeds=0,1,2 parts={'+'.join(every)}")
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    for part in chosen:
        for seed in seeds:
            for name in subjects:
                for row in rows_of(name, seed, part, cache):
                    with ROWS.open("a") as file:
                        file.write(json.dumps(row) + "\n")


def rows_of(name: str, seed: int, part: str, cache: str) -> Iterator[Row]:
    """Yield a row for each missing run of a part; rows with other shared settings do not count as measured."""
    subject = SUBJECTS[name]
    runs = parts(subject).get(part, [])
    if not runs:
        return
    common = (*subject.settings, f"seed={seed}", f"paths.cache={cache}")
    dense = configured(["data=fashion_mnist", *DENSE, *common])
    key = digest([identity(settings_of(dense))[part] for part in OF_DENSE])[:8]
    shared = configured([*RUN, *common, f"budget={subject.sparsity}"])
    protocol = digest([key, identity(settings_of(shared))])[:8]
    known = {"subject": name, "seed": seed, "part": part, "protocol": protocol}
    done = {row["run"] for row in read_rows() if known.items() <= row.items()}
    missing = [run for run in runs if " ".join(run) not in done]
    if not missing:
        return
    checkpoint = Path(cache) / "study" / f"{subject.model}-{seed}-{key}.safetensors"
    data = ImageData(dense.data, seed)
    if not checkpoint.is_file():
        trained, _ = dense_model(dense, data)
        save_tensors(checkpoint, trained.state_dict())
    fixed = (*RUN, *common, f"budget={subject.sparsity}", f"model.checkpoint={checkpoint}")
    for run in missing:
        result = result_of([*fixed, *run], data)
        yield {
            **known,
            "run": " ".join(run),
            "sparsity": result["sparsity"],
            "accuracy": result["accuracy"],
            "masks": result["masks_hash"][:16],
            "epochs": result["epochs"],
            "seconds": {phase: round(value, 2) for phase, value in result["seconds"].items()},
        }


if __name__ == "__main__":
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2:])
    elif sys.argv[1:] == ["report"]:
        write_report(read_rows(), RECIPES, {name: ablations(subject) for name, subject in SUBJECTS.items()})
    else:
        sys.exit(__doc__)
