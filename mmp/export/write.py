"""Exports of a run: each file is written, executed in its engine, measured, and described by a card."""

from __future__ import annotations

import json
import logging
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, Literal

import torch

from mmp.config.schema import ModelConfig
from mmp.config.source_code import file_of, source_digest
from mmp.errors import MmpError
from mmp.export.card import as_card
from mmp.export.measure import accuracy_of, file_sizes, latencies, network_sizes, processor, weight_counts
from mmp.export.result import SCHEMA_VERSION, Accuracy, Channels, ExportResult
from mmp.export.source import ExportedRun, completed_result
from mmp.export.targets import Engine, Target, export_error, logit_difference
from mmp.files import file_digest, replaced_folder, write_json, write_text
from mmp.models.networks import python_code
from mmp.report.conditions import select
from mmp.report.results import load_runs
from mmp.runs.store import CONFIG, RESULT, WEIGHTS, RunFolder, versions
from mmp.runs.threads import own_cores

log = logging.getLogger(__name__)


EXPORT, EXPORT_JSON, CARD = "export", "export.json", "README.md"
MOST_POINTS = 0.05  # by which the accuracy of an exact file may differ from the run's; one image is always allowed


@dataclass(frozen=True)
class Options:
    """Options of an export.

    Attributes:
        select: The runs of a sweep to export, as conditions (:mod:`mmp.report.conditions`).
        force: Whether to repeat exports that are up to date.
        seconds: Seconds of timing for each batch size; with 0, latency is not measured.
        data: Changes of the data configuration, such as ``data.root=images``.
    """

    select: str | None = None
    force: bool = False
    seconds: float = 3.0
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The outcome of exporting a run to one target.

    Attributes:
        status: Whether the export was written, was up to date already, or failed.
        folder: The folder of the export.
        result: The content of export.json; None if the export failed.
        error: Why it failed.
    """

    status: Literal["written", "unchanged", "failed"]
    folder: Path
    result: ExportResult | None = None
    error: str = ""


def runs_to_export(folder: Path, conditions: str | None) -> list[Path]:
    """Return the folder of a run, or the folders of the selected runs of a sweep.

    Args:
        folder: The folder of a run or of a sweep.
        conditions: Which runs of a sweep (:mod:`mmp.report.conditions`); None for a run.

    Raises:
        MmpError: if the folder is neither, a sweep has no conditions, or a run has some.
    """
    if not folder.is_dir():
        raise MmpError(f"{folder}: no such folder; give the folder of a run or of a sweep")
    if (folder / CONFIG).is_file() or (folder / RESULT).is_file():
        if conditions:
            raise MmpError(f"select={conditions} selects runs of a sweep, but {folder} is a single run")
        return [folder]
    runs = load_runs(folder)
    for run in runs:
        if run.status != "completed":
            log.warning("skipping %s, because it is %s (%s)", folder / run.folder, run.status, run.reason)
    if not conditions:
        raise MmpError(
            f"{folder}: contains {len(runs)} runs; select with select=pareto, select='drop<0.5' or select=all"
        )
    return [folder / run.folder for run in select(runs, conditions)]


def export_run(folder: Path, targets: Sequence[Target], options: Options) -> Iterator[Outcome]:
    """Export a run to each of several targets. The run is locked meanwhile.

    Args:
        folder: The run's folder.
        targets: The targets.
        options: Options of the export.

    Yields:
        The outcome for each target.

    Raises:
        MmpError: if the folder does not contain a completed pruned model.
    """
    run_folder = RunFolder(folder)
    completed_result(run_folder)
    with run_folder.lock(), tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        run = ExportedRun(folder, options.data, Path(scratch))
        stack.enter_context(own_cores(run.config))
        for target in targets:
            place = folder / EXPORT / target.name
            fingerprint = run.result.get("data_fingerprint")  # the same weights can be measured on other images
            origin = {**run.origin, "data_fingerprint": fingerprint, "versions": _versions(target)}
            existing = None if options.force else _up_to_date(place, origin, options.seconds > 0)
            if existing:
                yield Outcome("unchanged", place, existing)
                continue
            try:
                with replaced_folder(place) as fresh:
                    result = write_export(run, target, fresh, options.seconds, origin)
            except MmpError as error:
                yield Outcome("failed", place, error=str(error))
            else:
                yield Outcome("written", place, result)


def write_export(
    run: ExportedRun, target: Target, folder: Path, seconds: float, origin: dict[str, Any]
) -> ExportResult:
    """Write the file of a target, execute and measure it, and write export.json and the card.

    Args:
        run: The run.
        target: The target.
        folder: An empty folder.
        seconds: Seconds of timing for each batch size.
        origin: Checksums and versions that the export depends on.

    Returns:
        The content of export.json.

    Raises:
        MmpError: if the target does not support the model, the engine cannot execute the file, its accuracy differs
            from the run's, or a pruned weight is not zero in it.
    """
    source = run.pruned if getattr(target, "whole", False) else run.source
    paths = [folder / name for name in target.files]
    target.write(source, paths[0])
    where, stored = f"{source.name} as target={target.name}", target.weights(paths[0], source)
    weights = weight_counts(stored, source.masks, where, run.pruned.masks)
    engine = target.open(paths[0], source)
    logits_differ = logit_difference(engine, source, target)
    accuracy = _measured_accuracy(run, engine, target)
    dense, dense_weights = run.dense
    dense_paths = [dense.scratch / name for name in target.files]
    target.write(dense, dense_paths[0])
    result = ExportResult(
        schema_version=SCHEMA_VERSION,
        target=target.name,
        run=run.result["run_name"],
        files={path.name: file_digest(path) for path in paths},
        engine=target.engine,
        model=_described(run.config.model),
        images=run.preparation,
        classes=run.result.get("classes"),
        accuracy=accuracy,
        logits_differ=logits_differ,
        network=network_sizes(source.model, dense.model, source.images[:1]),
        channels=Channels(dict(source.removal.removed), source.removal.kept),
        bytes=file_sizes(run.path / WEIGHTS, paths, dense_paths),
        weights=weights,
        latency=latencies(engine, target.open(dense_paths[0], dense), source, seconds),
        threads=torch.get_num_threads(),
        processor=processor(),
        dense_weights=dense_weights,
        origin=origin,
        versions=origin["versions"],
        command=shlex.join(["mmp-prune", *run.result.get("overrides", [])]),
        masks_hash=run.result["masks_hash"],
    )
    write_json(folder / EXPORT_JSON, result.to_dict())
    write_text(folder / CARD, as_card(result, target.usage(source)))
    return result


def _described(model: ModelConfig) -> dict[str, Any]:
    described = {key: getattr(model, key) for key in ("name", "label", "num_classes", "in_chans", "kwargs")}
    if model._target_:
        address, (_, code) = model._target_, python_code(model)
        described |= {"_target_": address, "code": code, "file": file_of(address), "source": source_digest(address)}
    return described


def _measured_accuracy(run: ExportedRun, engine: Engine, target: Target) -> Accuracy:
    """Return the test accuracy of a file; an exact one must have the run's accuracy."""
    expected, expected_samples = run.result["accuracy"]["finetuned"]["test"], run.result["samples"]["test"]
    accuracy, samples = accuracy_of(engine, run.data.test_dataloader())
    if samples != expected_samples:
        raise MmpError(f"{run.path}: was measured on {expected_samples} test images, but the data set has {samples}")
    points = round(100 * (accuracy - expected), 4) + 0.0  # the run's accuracy is a float32; + 0.0 avoids -0.0
    if target.exact and abs(points) > max(MOST_POINTS, 100 / samples) + 1e-3:
        problem = f"its test accuracy is {100 * accuracy:.2f} %, but the run has {100 * expected:.2f} %"
        raise export_error(run.source, target, problem)
    return Accuracy(accuracy, expected, points, samples)


def _up_to_date(place: Path, origin: dict[str, Any], timed: bool) -> ExportResult | None:
    """Return the result of an earlier export if its files are intact, it is of this run, and timed if it must be."""
    try:
        result = ExportResult.from_dict(json.loads((place / EXPORT_JSON).read_text(encoding="utf-8")))
        intact = all(file_digest(place / name) == digest for name, digest in result.files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, damaged, or of another version
        return None
    same = result.schema_version == SCHEMA_VERSION and result.origin == origin
    return result if intact and same and (place / CARD).is_file() and (result.latency or not timed) else None


def _versions(target: Target) -> dict[str, str]:
    """Return the versions of all packages that an export depends on."""
    owners = packages_distributions()  # the module onnxruntime can come from the package onnxruntime-gpu
    needed = (*target.packages, "safetensors")
    return {**versions(), **{package: version(owners.get(package, [package])[0]) for package in needed}}
