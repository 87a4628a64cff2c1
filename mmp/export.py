"""Exports: a run folder -> a file for a device, run in its own engine, and a card that says what came of it.

``python -m mmp.export RUN_FOLDER target=onnx,sparse`` writes ``RUN_FOLDER/export/<target>/`` with the file, export.json
and README.md. ``python -m mmp.export SWEEP_FOLDER target=onnx select=pareto`` does so for the runs that are chosen.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import Tensor, nn
from yaml import YAMLError

from mmp.config import PruneConfig
from mmp.data import ImageData
from mmp.dense import dense_file
from mmp.errors import MmpError, nearest
from mmp.export_card import as_card, as_line
from mmp.files import file_digest, replaced_folder, write_json, write_text
from mmp.latency import compare_latency
from mmp.masks import Masks, check_zeros, load_masks
from mmp.models import build_model, load_weights
from mmp.results import load_runs
from mmp.select import conditions_help, select
from mmp.store import CONFIG, MASKS, RESULT, WEIGHTS, RunFolder, versions
from mmp.targets import TARGETS, Engine, Source, Target, load_target, tried
from mmp.validate import validate

EXPORT, EXPORT_JSON, CARD = "export", "export.json", "README.md"
SCHEMA_VERSION = 1
BATCHES = (1, 32)  # that latency is measured at
_ZSTD_LEVEL = 10
_DATA_KEYS = ("root", "workers", "eval_batch_size")  # of a run's data, what another machine may have to change


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


class Subject:
    """A completed run, and what its exports have in common: model, data, calibration images, dense counterpart.

    Args:
        folder: The run's folder.
        options: What the user says.
        scratch: A folder for intermediate files.

    Raises:
        MmpError: if the folder holds no completed pruned model.
    """

    def __init__(self, folder: Path, options: Options, scratch: Path) -> None:
        self.run, self._options, self._scratch = RunFolder(folder), options, scratch
        self.result = _completed(self.run)
        self.config = load_config(folder, options.data)
        self.origin = {name: file_digest(folder / name) for name in (WEIGHTS, MASKS, CONFIG)}

    @cached_property
    def data(self) -> ImageData:
        """The data set of the run.

        Raises:
            MmpError: if it is not the one that the run was measured on.
        """
        data = ImageData(self.config.data, self.config.seed)
        if data.fingerprint != self.result["data_fingerprint"]:
            raise MmpError(
                f"data={self.config.data.name}: these images are not those of the run {self.run.path}, so accuracies "
                "cannot be compared; set data.root to where they are"
            )
        return data

    @cached_property
    def source(self) -> Source:
        """The pruned model."""
        masks = load_masks(self.run.path / MASKS)
        model = build_model(self.config.model)
        load_weights(model, self.run.path / WEIGHTS)
        check_zeros(model.state_dict(), masks)
        batches = tuple(images for images, _ in self.data.calibration_dataloader())
        return Source(self.config.model, model.eval(), masks, batches, _made(self._scratch / "pruned"))

    @cached_property
    def dense(self) -> tuple[Source, str]:
        """The dense model, and where its weights are from: latency and size do not depend on what they are."""
        _, path = dense_file(self.config, self.data)
        model = copy.deepcopy(self.source.model)
        if path.is_file():
            load_weights(model, path)
            told = "trained"
        else:
            fill_pruned(model, self.source.masks)
            told = "random where the run pruned them"
        return self.source.with_weights(model, _made(self._scratch / "dense")), told


def export_run(folder: Path, targets: Sequence[str], options: Options) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Export a run to each of several targets.

    Args:
        folder: The run's folder.
        targets: Names of targets.
        options: What the user says.

    Yields:
        For each target ``written``, ``there`` or ``failed``, the folder, and what export.json holds, or for a target
        that failed its ``error``.

    Raises:
        MmpError: if the folder holds no completed pruned model, or a target is unknown or lacks a package.
    """
    loaded = [load_target(name) for name in targets]
    run = RunFolder(folder)
    _completed(run)
    with run.lock(), tempfile.TemporaryDirectory() as scratch:
        subject = Subject(folder, options, Path(scratch))
        for target in loaded:
            place = folder / EXPORT / target.name
            origin = {**subject.origin, "versions": _versions(target)}
            there = _there(place, origin)
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
    path = folder / target.file
    target.write(source, path)
    weights = count_weights(target.weights(path, source), source.masks, f"{source.name} as target={target.name}")
    engine = target.open(path, source)
    difference = tried(engine, source, target)
    accuracy, samples = accuracy_of(engine, subject.data.test_dataloader())
    expected = result["accuracy"]["finetuned"]["test"]
    if samples != result["samples"]["test"]:
        raise MmpError(f"{subject.run.path}: measured on {result['samples']['test']} test images, here are {samples}")
    dense, dense_weights = subject.dense
    dense_path = dense.scratch / target.file
    target.write(dense, dense_path)
    content = {
        "schema_version": SCHEMA_VERSION,
        "target": target.name,
        "run": result["run_name"],
        "file": target.file,
        "sha256": file_digest(path),
        "engine": target.engine,
        "model": {key: getattr(config.model, key) for key in ("name", "label", "num_classes", "in_chans", "kwargs")},
        "images": {
            key: getattr(config.data, key)
            for key in ("channels", "image_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        },
        "accuracy": {
            "file": accuracy,
            "pytorch": expected,
            "difference": 100 * (accuracy - expected),
            "samples": samples,
        },
        "logits_differ": difference,
        "bytes": {
            "dense_fp32": (subject.run.path / WEIGHTS).stat().st_size,
            "file": path.stat().st_size,
            "compressed": compressed_size(path),
            "dense_file": dense_path.stat().st_size,
            "dense_compressed": compressed_size(dense_path),
        },
        "weights": weights,
        "latency": _latencies(engine, target.open(dense_path, dense), source, seconds),
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "dense_weights": dense_weights,
        "origin": origin,
        "versions": _versions(target),
    }
    write_json(folder / EXPORT_JSON, content)
    write_text(folder / CARD, as_card(content, target.usage(source)))
    return content


def load_config(folder: Path, data: Iterable[str] = ()) -> PruneConfig:
    """Return the configuration of a run.

    Args:
        folder: The run's folder.
        data: Changes of its data, such as ``data.root=images``.

    Raises:
        MmpError: if the file is missing or damaged, or a change is not one of where images lie and how they are read.
    """
    for change in data:
        key = change.partition("=")[0].removeprefix("data.")
        if key not in _DATA_KEYS:
            raise MmpError(f"{change}: of a run's data only this can change: {', '.join(_DATA_KEYS)}")
    try:
        saved = OmegaConf.load(folder / CONFIG)
        return validate(OmegaConf.merge(OmegaConf.structured(PruneConfig), saved, OmegaConf.from_dotlist(list(data))))
    except (OSError, YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        told = str(error).splitlines()[0]
        raise MmpError(f"{folder / CONFIG}: not the configuration of a run ({told}); run it again") from error


def count_weights(weights: dict[str, Tensor], masks: Masks, where: str) -> dict[str, Any]:
    """Count the weights of a file that are not zero, and compare them with the masks.

    Args:
        weights: What lies in the file under each mask.
        masks: The masks.
        where: What the file is, for the message.

    Raises:
        MmpError: if a weight that the masks prune is not zero in the file.
    """
    nonzero = 0
    for name, mask in masks.items():
        alive = weights[name] != 0
        revived = int((alive & ~mask).count_nonzero())
        if revived:
            raise MmpError(f"{where}: {revived} pruned weights of {name!r} are not zero in the file; nothing was written")
        nonzero += int(alive.count_nonzero())
    kept = masks.total - sum(masks.pruned.values())
    return {
        "prunable": masks.total,
        "kept": kept,
        "nonzero": nonzero,
        "rounded_to_zero": kept - nonzero,
        "sparsity": 1 - nonzero / masks.total,
        "sparsity_of_masks": masks.sparsity,
        "types": sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()}),
    }


def accuracy_of(engine: Engine, batches: Iterable[Sequence[Tensor]]) -> tuple[float, int]:
    """Return the top-1 accuracy in [0, 1] of an engine, and the number of images that it has seen."""
    right = samples = 0
    for images, labels in batches:
        right += int((engine(images).argmax(1) == labels).sum())
        samples += len(labels)
    return right / samples, samples


def compressed_size(path: Path) -> int:
    """Return how many bytes zstd makes of a file."""
    import zstandard

    written = 0
    with path.open("rb") as file:
        for chunk in zstandard.ZstdCompressor(level=_ZSTD_LEVEL).read_to_iter(file):
            written += len(chunk)
    return written


def fill_pruned(model: nn.Module, masks: Masks) -> None:
    """Give pruned weights random values of the size of those that were kept, in place."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, mask in masks.items():
            weight = model.get_parameter(name)
            noise = torch.randn(weight.shape, generator=generator) * weight[mask].std().nan_to_num(1.0)
            weight.copy_(torch.where(mask, weight, noise))


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _latencies(engine: Engine, dense: Engine, source: Source, seconds: float) -> list[dict[str, Any]]:
    if not seconds:
        return []
    shape = source.images.shape[1:]
    batches = [torch.randn(size, *shape, generator=torch.Generator().manual_seed(0)) for size in BATCHES]
    return [compare_latency(engine, dense, images, seconds).to_dict() for images in batches]


def _completed(run: RunFolder) -> dict[str, Any]:
    """Return the result of a run, which must be completed and whole."""
    result = run.result
    if result is None:
        raise MmpError(f"{run.path}: holds no {RESULT}; give the folder of a completed run of prune.py")
    if result.get("kind") == "dense":
        raise MmpError(f"{run.path}: is a dense model of train.py; export needs a run of prune.py")
    files = result.get("files") or {}
    missing = [name for name in (WEIGHTS, MASKS, CONFIG) if not (run.path / name).is_file()]
    broken = [name for name, size in files.items() if name not in missing and (run.path / name).stat().st_size != size]
    if result.get("status") != "completed" or missing or broken:
        what = f"{(missing or broken)[0]} is {'missing' if missing else 'not whole'}" if missing or broken else "failed"
        raise MmpError(f"{run.path}: is not a completed run ({what}); run it again")
    return result


def _there(place: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """Return what export.json holds if the export is whole and of this very run."""
    try:
        content = json.loads((place / EXPORT_JSON).read_text(encoding="utf-8"))
        whole = file_digest(place / content["file"]) == content["sha256"] and (place / CARD).is_file()
        return content if whole and content["origin"] == origin else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _versions(target: Target) -> dict[str, str]:
    return {**versions(), **{package: version(package) for package in (*target.packages, "safetensors")}}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


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
            targets = value.split(",")
        elif key == "select":
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
            told = nearest(key, ["target", "select", "force", "seconds", *(f"data.{name}" for name in _DATA_KEYS)])
            raise MmpError(f"{key}: no such key; {told}")
    if not targets:
        raise MmpError(f"target: must be set, with target=...; choose from: {', '.join(TARGETS)}")
    return targets, options


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
        Exit code: 0 if everything asked for is there, 1 otherwise.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmp.export",
        description="Export pruned models to files for a device, and run them in their own engine.",
        epilog=f"targets: {', '.join(TARGETS)} (several with commas)\n"
        "select=pareto, select=all, or comparisons of these fields, joined by commas:\n" + conditions_help() + "\n"
        "seconds=3 of timing for each batch size (0: none), force=true to make again what is there\n"
        f"where the images lie here: {', '.join(f'data.{name}=' for name in _DATA_KEYS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of a run, or of a sweep")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="target=onnx,sparse select=pareto force=true")
    parsed = parser.parse_args(arguments)
    console, failed = Console(soft_wrap=True, highlight=False, markup=False), False
    try:
        targets, options = read_options(parsed.settings)
        for folder in runs_to_export(parsed.folder, options.select):
            for outcome, place, content in export_run(folder, targets, options):
                if outcome == "failed":
                    failed = True
                    sys.stderr.write(f"error: {content['error']}\n")
                else:
                    console.print(f"{as_line(content)}{', already there' if outcome == 'there' else ''}: {place}")
    except (MmpError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
