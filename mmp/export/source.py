"""A run that is exported: its model, data and dense counterpart, read once for all targets."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.data.module import ImageData
from mmp.errors import MmpError
from mmp.export.measure import fill_pruned
from mmp.export.targets import Exportable
from mmp.files import file_digest
from mmp.models.timm_models import build_bare
from mmp.models.weights import load_weights
from mmp.pruning.masks import check_zeros, load_masks
from mmp.runs.store import CONFIG, MASKS, RESULT, WEIGHTS, RunFolder
from mmp.training.dense import dense_file

log = logging.getLogger(__name__)

DATA_KEYS = ("root", "workers", "eval_batch_size")  # of a run's data, what another machine may have to change


class Subject:
    """A completed run, and what its exports have in common: model, data, calibration images, dense counterpart.

    Args:
        folder: The run's folder.
        changes: Of its data configuration, such as ``data.root=images``.
        scratch: A folder for intermediate files.

    Raises:
        MmpError: if the folder holds no completed pruned model.
    """

    def __init__(self, folder: Path, changes: Sequence[str], scratch: Path) -> None:
        self.run, self._scratch = RunFolder(folder), scratch
        self.result = completed_result(self.run)
        self.config = load_config(folder, changes)
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
    def source(self) -> Exportable:
        """The pruned model.

        Raises:
            MmpError: if weights or masks are damaged, or not those that the run has written.
        """
        masks = load_masks(self.run.path / MASKS)
        model = build_bare(self.config.model)
        load_weights(model, self.run.path / WEIGHTS)
        check_zeros(model.state_dict(), masks)
        digests = self.result.get("digests")
        digests = digests if isinstance(digests, dict) else {}  # results of earlier versions have none
        changed = [name for name in (MASKS, WEIGHTS) if digests.get(name, self.origin[name]) != self.origin[name]]
        if masks.digest() != self.result["masks_hash"] or changed:
            raise MmpError(f"{self.run.path / (changed or [MASKS])[0]}: is not what the run has written; run it again")
        batches = _Calibration(self.data)
        return Exportable(self.config.model, model.eval(), masks, batches, _made(self._scratch / "pruned"))

    @cached_property
    def dense(self) -> tuple[Exportable, str]:
        """The dense model, and where its weights are from; finite ones of any value have the same latency and size."""
        _, path = dense_file(self.config, self.data)
        model, told = copy.deepcopy(self.source.model), "random where the run pruned them, the others scaled"
        try:
            if path.is_file():
                load_weights(model, path)
                told = "trained"
        except MmpError as error:
            log.warning("%s; random weights take their place", error)
            model, told = copy.deepcopy(self.source.model), f"{told}, because the trained ones cannot be read"
        if told != "trained":
            fill_pruned(model, self.source.masks)
        return self.source.with_weights(model, _made(self._scratch / "dense")), told


class _Calibration:
    """Images of the calibration split in batches, read anew whenever they are asked for."""

    def __init__(self, data: ImageData) -> None:
        self._loader = data.calibration_dataloader()

    def __iter__(self) -> Iterator[Tensor]:
        return (images for images, _ in self._loader)


def load_config(folder: Path, changes: Sequence[str] = ()) -> PruneConfig:
    """Return the configuration of a run.

    Args:
        folder: The run's folder.
        changes: Of its data configuration, such as ``data.root=images``.

    Raises:
        MmpError: if the file is missing or damaged, or a change is not one of where images lie and how they are read.
    """
    for change in changes:
        key = change.partition("=")[0].removeprefix("data.")
        if key not in DATA_KEYS:
            raise MmpError(f"{change}: of a run's data only this can change: {', '.join(DATA_KEYS)}")
    try:
        saved = OmegaConf.load(folder / CONFIG)
        merged = OmegaConf.merge(OmegaConf.structured(PruneConfig), saved)
    except Exception as error:  # of the file system, of YAML, or of OmegaConf
        told = str(error).splitlines()[0]
        raise MmpError(f"{folder / CONFIG}: not the configuration of a run ({told}); run it again") from error
    for change in changes:
        try:
            merged.merge_with_dotlist([change])
        except Exception as error:  # of YAML, or of OmegaConf
            raise MmpError(f"{change}: {str(error).splitlines()[0]}") from error
    return validate(cast(DictConfig, merged), PruneConfig)


# What is needed of a result, and whether a value can be right.
_NEEDED: dict[str, Callable[[Any], bool]] = {
    "run_name": lambda value: isinstance(value, str),
    "data_fingerprint": lambda value: isinstance(value, str),
    "masks_hash": lambda value: isinstance(value, str),
    "accuracy.finetuned.test": lambda value: type(value) in (int, float) and 0 <= value <= 1,
    "samples.test": lambda value: type(value) is int and value > 0,
}


def completed_result(run: RunFolder) -> dict[str, Any]:
    """Return what ``result.json`` of a run holds.

    Raises:
        MmpError: if the run is not completed and whole, or of a dense model.
    """
    result = run.result
    if result is None:
        raise MmpError(f"{run.path}: holds no {RESULT}; give the folder of a completed run of prune.py")
    if result.get("kind") == "dense":
        raise MmpError(f"{run.path}: is a dense model of train.py; export needs a run of prune.py")
    files = result.get("files")
    sizes = files if isinstance(files, dict) else {}
    missing = [name for name in (WEIGHTS, MASKS, CONFIG) if not (run.path / name).is_file()]
    broken = [n for n in (WEIGHTS, MASKS) if n not in missing and (run.path / n).stat().st_size != sizes.get(n)]
    if result.get("status") != "completed" or missing or broken:
        what = f"{(missing or broken)[0]} is {'missing' if missing else 'not whole'}" if missing or broken else "failed"
        raise MmpError(f"{run.path}: is not a completed run ({what}); run it again")
    for key, is_right in _NEEDED.items():
        value: Any = result
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None or not is_right(value):
            what = f"lacks {key!r}" if value is None else f"has {key}={value!r}"
            raise MmpError(f"{run.path}: {RESULT} {what}; run it again")
    return result


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
