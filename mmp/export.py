"""Exports: a run folder -> a file for a device, run in its own engine, and a card that says what came of it.

``python -m mmp.export RUN_FOLDER target=onnx,sparse`` writes ``RUN_FOLDER/export/<target>/`` with the file, export.json
and README.md. ``python -m mmp.export SWEEP_FOLDER target=onnx select=pareto`` does so for the runs that are chosen.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mmp.errors import MmpError, nearest
from mmp.export_card import as_card, as_line
from mmp.export_measure import accuracy_of, compressed_size, count_weights, latencies, processor, size
from mmp.export_subject import DATA_KEYS, Subject, completed_result
from mmp.files import file_digest, replaced_folder, write_json, write_text
from mmp.results import load_runs
from mmp.select import conditions_help, select
from mmp.store import CONFIG, RESULT, WEIGHTS, RunFolder, versions
from mmp.targets import TARGETS, Target, load_target, tried, unable

log = logging.getLogger(__name__)

EXPORT, EXPORT_JSON, CARD = "export", "export.json", "README.md"
SCHEMA_VERSION = 2
MOST_POINTS = 0.05  # by which the accuracy of an exact file may differ from the run's, or one image


@dataclass(frozen=True)
class Options:
    """What a user can say besides folder and target.

    Attributes:
        select: Which runs of a sweep (:mod:`mmp.select`).
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


def read_options(settings: Sequence[str]) -> tuple[list[str], Options]:
    """Return targets and options of a command line.

    Raises:
        MmpError: on a word that is no ``key=value``, an unknown key with the nearest, or a wrong value.
    """
    targets, options = list[str](), Options()
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise MmpError(f"{setting}: must be key=value, such as target=onnx")
        if key == "target":
            targets += value.split(",")
        elif key == "select":
            if options.select is not None:
                raise MmpError(f"{setting}: select is set already; join conditions by commas, for runs that meet all")
            options = replace(options, select=value)
        elif key == "force":
            if value not in ("true", "false"):
                raise MmpError(f"{setting}: must be true or false")
            options = replace(options, force=value == "true")
        elif key == "seconds":
            options = replace(options, seconds=_seconds(value))
        elif key.startswith("data."):
            options = replace(options, data=(*options.data, setting))
        else:
            told = nearest(key, ["target", "select", "force", "seconds", *(f"data.{name}" for name in DATA_KEYS)])
            raise MmpError(f"{key}: no such key; {told}")
    if not targets:
        raise MmpError(f"target: must be set, with target=...; choose from: {', '.join(TARGETS)}")
    return list(dict.fromkeys(targets)), options


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise MmpError(f"seconds={value}: must be a number, at least 0")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Export runs as the command line says.

    Returns:
        Exit code: 0 if everything asked for is there, 1 otherwise, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmp.export",
        description="Export pruned models to files for a device, and run them in their own engine.",
        epilog=f"targets: {', '.join(TARGETS)} (several with commas)\n"
        "select=pareto, select=all, or comparisons of these fields, joined by commas:\n" + conditions_help() + "\n"
        "seconds=3 of timing for each batch size (0: none), force=true to make again what is there\n"
        f"where the images lie here: {', '.join(f'data.{name}=' for name in DATA_KEYS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of a run, or of a sweep")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="target=onnx,sparse select=pareto force=true")
    parsed = parser.parse_args(arguments)
    console, failed = Console(soft_wrap=True, highlight=False, markup=False), False
    try:
        names, options = read_options(parsed.settings)
        targets = [load_target(name) for name in names]
        folders = runs_to_export(parsed.folder, options.select)
    except MmpError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for folder in folders:
        try:
            for outcome, place, content in export_run(folder, targets, options):
                if outcome == "failed":
                    failed = True
                    sys.stderr.write(f"error: {content['error']}\n")
                else:
                    console.print(f"{as_line(content)}{', already there' if outcome == 'there' else ''}: {place}")
        except (MmpError, OSError) as error:
            failed = True
            sys.stderr.write(f"error: {error}\n")
        except KeyboardInterrupt:
            sys.stderr.write(f"interrupted at {folder}\n")
            return 130
    return int(failed)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mmp").setLevel(logging.INFO)  # that another process is waited for
    sys.exit(main())
