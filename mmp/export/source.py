"""The run to export: its model, its data and its dense model, loaded once for all targets."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from mmp.config.objects import resolve
from mmp.config.schema import ModelConfig, PruneConfig
from mmp.config.source_code import file_of, source_digest
from mmp.config.validate import validate
from mmp.data.module import ImageData
from mmp.errors import MmpError, first_line
from mmp.export.measure import fill_pruned
from mmp.export.targets import Exportable
from mmp.files import file_digest
from mmp.models.networks import build_bare
from mmp.models.weights import load_weights
from mmp.pruning.channels.shrink import shrink
from mmp.pruning.masks import Masks, check_zeros, clear_pruned, load_masks
from mmp.pruning.patterns import MULTIPLE, Channels, parse
from mmp.report.fields import value_at
from mmp.runs.store import CONFIG, MASKS, RESULT, WEIGHTS, RunFolder
from mmp.training.dense import dense_file

log = logging.getLogger(__name__)

DATA_KEYS = ("root", "workers", "eval_batch_size")  # settings of a run's data that may differ on another machine
_CHECKED = 16  # calibration images on which the smaller network must have the same logits
_RANDOM = "random where the run pruned them, the others scaled"


class ExportedRun:
    """A completed run: the model, the data, the calibration images and the dense model that its exports share.

    Args:
        path: The run's folder.
        changes: Changes of its data configuration, such as ``data.root=images``.
        scratch: A folder for intermediate files.

    Raises:
        MmpError: if the folder does not contain a completed run of ``prune.py``.
    """

    def __init__(self, path: Path, changes: Sequence[str], scratch: Path) -> None:
        self.path, self._scratch = path, scratch
        self.result = completed_result(RunFolder(path))
        self.config = load_config(path, changes)
        _require_same_code(path, self.config.model, self.result.get("model_source"))
        self.origin = {name: file_digest(path / name) for name in (WEIGHTS, MASKS, CONFIG)}

    @cached_property
    def data(self) -> ImageData:
        """The data set of the run.

        Raises:
            MmpError: if its images are not those that the run was measured on.
        """
        data = ImageData(self.config.data, self.config.seed, Path(self.config.paths.cache))
        if data.fingerprint != self.result["data_fingerprint"]:
            raise MmpError(
                f"data={self.config.data.name}: these images are not the images of the run {self.path}, so accuracies "
                "cannot be compared; set data.root to the folder of the run's images"
            )
        return data

    @cached_property
    def preparation(self) -> dict[str, Any]:
        """Channels, size and normalisation of the images, and as ``recipe`` how to prepare them."""
        settings = {key: getattr(self.config.data, key) for key in ("channels", "image_size", "mean", "std")}
        return {**settings, "recipe": self.data.recipe}

    @cached_property
    def pruned(self) -> Exportable:
        """The pruned model, with all channels.

        Raises:
            MmpError: if weights or masks are damaged, or are not those that the run has written.
        """
        masks = load_masks(self.path / MASKS)
        model = build_bare(self.config.model)
        load_weights(model, self.path / WEIGHTS)
        check_zeros(model.state_dict(), masks)
        clear_pruned(model.state_dict(), masks)  # runs of earlier versions may have pruned weights of -0.0
        self._require_original(masks.digest())
        batches, names = _Calibration(self.data), self.result.get("classes")
        scratch = _new_folder(self._scratch / "pruned")
        return Exportable(self.config.model, model.eval(), masks, batches, scratch, names, self.preparation)

    @cached_property
    def source(self) -> Exportable:
        """The pruned model without the channels that nothing reads."""
        whole = self.pruned
        images = next(iter(whole.batches))[:_CHECKED]
        try:
            model, removal = shrink(whole.model, images, self._multiple)
        except Exception as error:  # a network that none of the experiments was made for can raise any exception
            reason = first_line(error)
            log.warning("%s: exported with all channels, since unread ones cannot be found (%s)", whole.name, reason)
            return whole
        if not removal.removed:
            return replace(whole, removal=removal)
        masks, scratch = Masks(removal.narrowed(whole.masks)), _new_folder(self._scratch / "smaller")
        return replace(whole, model=model, masks=masks, removal=removal, scratch=scratch)

    @property
    def _multiple(self) -> int:
        """The number of channels that convolutions keep a multiple of, so that no engine becomes slower."""
        pattern = parse(self.config.pattern)
        return pattern.multiple if isinstance(pattern, Channels) else MULTIPLE

    @cached_property
    def dense(self) -> tuple[Exportable, str]:
        """The dense model, and where its weights come from.

        If its trained weights are unavailable, they are random: latency and size do not depend on their values.
        """
        model, origin = self._dense_model()
        return self.pruned.with_weights(model, _new_folder(self._scratch / "dense")), origin

    def _dense_model(self) -> tuple[nn.Module, str]:
        _, path = dense_file(self.config, self.data)
        origin = _RANDOM
        if path.is_file():
            model = copy.deepcopy(self.pruned.model)
            weights_key = self.config.model.weights_key if self.config.model.checkpoint else None
            try:
                load_weights(model, path, weights_key=weights_key)
            except MmpError as error:
                log.warning("%s; exporting a dense model with random weights instead", error)
                origin = f"{_RANDOM}, because the trained ones cannot be read"
            else:
                return model, "trained"
        model = copy.deepcopy(self.pruned.model)
        fill_pruned(model, self.pruned.masks)
        return model, origin

    def _require_original(self, masks_hash: str) -> None:
        """Compare masks and weights with the checksums in the result; results of earlier versions have only one."""
        digests = self.result.get("digests")
        digests = digests if isinstance(digests, dict) else {}
        changed = [name for name in (MASKS, WEIGHTS) if digests.get(name, self.origin[name]) != self.origin[name]]
        if masks_hash != self.result["masks_hash"] or changed:
            raise MmpError(f"{self.path / (changed or [MASKS])[0]}: is not what the run has written; run it again")


def _require_same_code(path: Path, model: ModelConfig, recorded: str | None) -> None:
    """Raise if the code of a user's network is not the code that the run has pruned."""
    if not model._target_:
        return
    resolve(model._target_, "model")
    if recorded and source_digest(model._target_) != recorded:
        raise MmpError(
            f"{model.setting}: its code has changed since the run {path}; restore {file_of(model._target_)} and the "
            "modules that it imports, or run again"
        )


class _Calibration:
    """The images of the calibration split in batches; they can be iterated over several times."""

    def __init__(self, data: ImageData) -> None:
        self._loader = data.calibration_dataloader()

    def __iter__(self) -> Iterator[Tensor]:
        return (images for images, _ in self._loader)


def load_config(folder: Path, changes: Sequence[str] = ()) -> PruneConfig:
    """Return the configuration of a run.

    Args:
        folder: The run's folder.
        changes: Changes of its data configuration, such as ``data.root=images``.

    Raises:
        MmpError: if the file is missing or damaged, or a change is not one of `DATA_KEYS`.
    """
    for change in changes:
        key = change.partition("=")[0].removeprefix("data.")
        if key not in DATA_KEYS:
            raise MmpError(f"{change}: only these settings can change: {', '.join(f'data.{one}' for one in DATA_KEYS)}")
    try:
        saved = OmegaConf.load(folder / CONFIG)
        merged = OmegaConf.merge(OmegaConf.structured(PruneConfig), saved)
    except Exception as error:  # from the file system, YAML or OmegaConf
        raise MmpError(
            f"{folder / CONFIG}: not the configuration of a run ({first_line(error)}); run it again"
        ) from error
    for change in changes:
        try:
            merged.merge_with_dotlist([change])
        except Exception as error:  # from YAML or OmegaConf
            raise MmpError(f"{change}: {first_line(error)}") from error
    return validate(cast(DictConfig, merged), PruneConfig)


def completed_result(run: RunFolder) -> dict[str, Any]:
    """Return the content of a run's ``result.json``.

    Raises:
        MmpError: if there is none, it is of a dense model, the run is not completed, or one of its files is missing or
            damaged.
    """
    result = run.result
    if result is None:
        raise MmpError(f"{run.path}: contains no {RESULT}; give the folder of a completed run of mmp-prune")
    for problem_of in _CHECKS:
        if problem := problem_of(run.path, result):
            raise MmpError(f"{run.path}: {problem}")
    return result


def _wrong_kind(_: Path, result: Mapping[str, Any]) -> str | None:
    return "is a dense model of mmp-train; export a run of mmp-prune" if result.get("kind") == "dense" else None


def _missing_file(folder: Path, _: Mapping[str, Any]) -> str | None:
    for name in (WEIGHTS, MASKS, CONFIG):
        if not (folder / name).is_file():
            return f"is not a completed run ({name} is missing); run it again"
    return None


def _damaged_file(folder: Path, result: Mapping[str, Any]) -> str | None:
    sizes = result.get("files")
    for name in (WEIGHTS, MASKS):
        if not isinstance(sizes, dict) or (folder / name).stat().st_size != sizes.get(name):
            return f"is not a completed run ({name} has a different size in {RESULT}); run it again"
    return None


def _not_completed(_: Path, result: Mapping[str, Any]) -> str | None:
    status = result.get("status")
    return None if status == "completed" else f"is not a completed run (its status is {status!r}); run it again"


def _invalid_value(_: Path, result: Mapping[str, Any]) -> str | None:
    for key, is_valid in _NEEDED.items():
        value = value_at(result, key)
        if value is None:
            return f"{RESULT} lacks {key!r}; run it again"
        if not is_valid(value):
            return f"{RESULT} has {key}={value!r}; run it again"
    return None


def _wrong_classes(_: Path, result: Mapping[str, Any]) -> str | None:
    """Runs of earlier versions have no names of classes."""
    names = result.get("classes")
    if names is None or (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return None
    return f"{RESULT} has classes={names!r}, but they must be a list of names; run it again"


# Each returns a problem that makes a run impossible to export, or None.
_CHECKS = (_wrong_kind, _missing_file, _damaged_file, _not_completed, _invalid_value, _wrong_classes)

# The values of a result that an export needs, and whether a value is valid.
_NEEDED: dict[str, Callable[[Any], bool]] = {
    "run_name": lambda value: isinstance(value, str),
    "data_fingerprint": lambda value: isinstance(value, str),
    "masks_hash": lambda value: isinstance(value, str),
    "accuracy.finetuned.test": lambda value: type(value) in (int, float) and 0 <= value <= 1,
    "samples.test": lambda value: type(value) is int and value > 0,
}


def _new_folder(path: Path) -> Path:
    path.mkdir()
    return path
