"""Exports of a run: each file is written, run in its own engine, measured, and described on a card."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from mmp.errors import MmpError
from mmp.export.card import as_card
from mmp.export.measure import accuracy_of, compressed_size, count_weights, latencies, processor, size
from mmp.export.source import Subject, completed_result
from mmp.export.targets import Target, tried, unable
from mmp.files import file_digest, replaced_folder, write_json, write_text
from mmp.report.conditions import select
from mmp.report.results import load_runs
from mmp.runs.store import CONFIG, RESULT, WEIGHTS, RunFolder, versions

log = logging.getLogger(__name__)


EXPORT, EXPORT_JSON, CARD = "export", "export.json", "README.md"
SCHEMA_VERSION = 2
MOST_POINTS = 0.05  # by which the accuracy of an exact file may differ from the run's, or one image


@dataclass(frozen=True)
class Options:
    """What a user can say besides folder and target.

    Attributes:
        select: Which runs of a sweep (:mod:`mmp.report.conditions`).
        force: Whether to make again what is there.
        seconds: How long to time each batch size; 0 leaves latency out.
        data: Changes of the data configuration: where images lie on this machine, and how they are read.
    """

    select: str | None = None
    force: bool = False
    seconds: float = 3.0
    data: tuple[str, ...] = ()


def export_run(folder: Path, targets: Sequence[Target], options: Options) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Export a run to each of several targets.

    Args:
        folder: The run's folder.
        targets: Kinds of files.
        options: What the user says.

    Yields:
        For each target ``written``, ``there`` or ``failed``, the folder, and what export.json holds, or for a target
        that failed its ``error``.

    Raises:
        MmpError: if the folder holds no completed pruned model.
    """
    run = RunFolder(folder)
    completed_result(run)
    with run.lock(), tempfile.TemporaryDirectory() as scratch:
        subject = Subject(folder, options.data, Path(scratch))
        for target in targets:
            place = folder / EXPORT / target.name
            origin = {**subject.origin, "versions": _versions(target)}
            there = _there(place, origin, options.seconds > 0)
            if there and not options.force:
                yield "there", place, there
                continue
            try:
                with replaced_folder(place) as fresh:
                    content = write_export(subject, target, fresh, options.seconds, origin)
            except MmpError as error:
                yield "failed", place, {"error": str(error)}
            else:
                yield "written", place, content


def write_export(
    subject: Subject, target: Target, folder: Path, seconds: float, origin: dict[str, Any]
) -> dict[str, Any]:
    """Write a file and run it; then export.json and the card.

    Args:
        subject: The run.
        target: The kind of file.
        folder: An empty folder.
        seconds: How long to time each batch size.
        origin: What the file comes from.

    Returns:
        What export.json holds.

    Raises:
        MmpError: if the target cannot hold the model, the engine cannot run it, or a pruned weight is not zero in it.
    """
    source, config, result = subject.source, subject.config, subject.result
    paths = [folder / name for name in target.files]
    path = paths[0]
    target.write(source, path)
    weights = count_weights(target.weights(path, source), source.masks, f"{source.name} as target={target.name}")
    engine = target.open(path, source)
    difference = tried(engine, source, target)
    accuracy, samples = accuracy_of(engine, subject.data.test_dataloader())
    expected = result["accuracy"]["finetuned"]["test"]
    if samples != result["samples"]["test"]:
        raise MmpError(f"{subject.run.path}: measured on {result['samples']['test']} test images, here are {samples}")
    points = round(100 * (accuracy - expected), 4) + 0.0  # the run's accuracy is a float32; no -0.0
    if target.exact and abs(points) > max(MOST_POINTS, 100 / samples) + 1e-3:
        what = f"its test accuracy is {100 * accuracy:.2f} %, that of the run was {100 * expected:.2f} %"
        raise unable(source, target, what)
    dense, dense_weights = subject.dense
    dense_paths = [dense.scratch / name for name in target.files]
    target.write(dense, dense_paths[0])
    content = {
        "schema_version": SCHEMA_VERSION,
        "target": target.name,
        "run": result["run_name"],
        "files": {one.name: file_digest(one) for one in paths},
        "engine": target.engine,
        "model": {key: getattr(config.model, key) for key in ("name", "label", "num_classes", "in_chans", "kwargs")},
        "images": {
            **{key: getattr(config.data, key) for key in ("channels", "image_size", "mean", "std")},
            "recipe": subject.data.recipe,
        },
        "accuracy": {
            "file": accuracy,
            "pytorch": expected,
            "difference": points,
            "samples": samples,
        },
        "logits_differ": difference,
        "bytes": {
            "dense_fp32": (subject.run.path / WEIGHTS).stat().st_size,
            "file": size(paths),
            "compressed": compressed_size(paths),
            "dense_file": size(dense_paths),
            "dense_compressed": compressed_size(dense_paths),
        },
        "weights": weights,
        "latency": latencies(engine, target.open(dense_paths[0], dense), source, seconds),
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "dense_weights": dense_weights,
        "origin": origin,
        "versions": origin["versions"],
    }
    write_json(folder / EXPORT_JSON, content)
    write_text(folder / CARD, as_card(content, target.usage(source)))
    return content


def _there(place: Path, origin: dict[str, Any], timed: bool) -> dict[str, Any] | None:
    """Return what export.json holds if the export is whole, of this very run, and timed if it must be."""
    try:
        content = json.loads((place / EXPORT_JSON).read_text(encoding="utf-8"))
        whole = all(file_digest(place / name) == digest for name, digest in content["files"].items())
        whole = whole and (place / CARD).is_file() and content["schema_version"] == SCHEMA_VERSION
        whole = whole and (bool(content["latency"]) or not timed)
        return content if whole and content["origin"] == origin else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _versions(target: Target) -> dict[str, str]:
    owners = packages_distributions()  # onnxruntime may be of onnxruntime-gpu
    needed = (*target.packages, "safetensors")
    return {**versions(), **{package: version(owners.get(package, [package])[0]) for package in needed}}


def runs_to_export(folder: Path, conditions: str | None) -> list[Path]:
    """Return the run that a folder is, or those of a sweep's folder that are chosen.

    Raises:
        MmpError: if it is neither, a sweep without conditions, or a run with them.
    """
    if not folder.is_dir():
        raise MmpError(f"{folder}: no such folder; give the folder of a run, or of a sweep")
    if (folder / CONFIG).is_file() or (folder / RESULT).is_file():
        if conditions:
            raise MmpError(f"select={conditions} chooses among the runs of a sweep, but {folder} is a single run")
        return [folder]
    runs = load_runs(folder)
    for run in runs:
        if run.status != "completed":
            log.warning("%s is left out, because it is %s (%s)", folder / run.folder, run.status, run.reason)
    if not conditions:
        raise MmpError(f"{folder}: holds {len(runs)} runs; choose with select=pareto, select='drop<0.5' or select=all")
    return [folder / run.folder for run in select(runs, conditions)]
