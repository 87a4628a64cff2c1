"""Calibration: scores and observed ranges of a dense model, computed once and shared by all runs of a sweep."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mmp.cache import cached_set, cached_tensors
from mmp.config.identity import architecture, digest, with_sources
from mmp.config.schema import JOINT, RangesConfig, ReconstructConfig, TrainConfig
from mmp.config.source_code import own_source_digest
from mmp.data.module import ImageData
from mmp.machine import usable_memory
from mmp.pruning.calibration_statistics import collect
from mmp.pruning.channels.structure import SetScorer, WholeChannels
from mmp.pruning.criteria import Criterion, criterion, observe
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.prunable import prunable_parameters
from mmp.pruning.masks import Masks
from mmp.pruning.reconstruction.joint import Tuning, reconstruct_jointly
from mmp.pruning.reconstruction.joint_report import JointReport
from mmp.pruning.reconstruction.reconstruct import LayerReport, dense_targets, reconstruct
from mmp.pruning.reconstruction.tuning_images import divided, singly, stacked
from mmp.pruning.signals import PAPER_SIGNALS, Scorer, score
from mmp.pruning.sizes import MEGABYTE
from mmp.tensors import memory_of, tensors_digest

_MOST_SHARED = 10**9  # bytes; larger covariances are not cached


@dataclass
class Calibration:
    """A dense model with the calibration split, from which scores and observed ranges are computed.

    Attributes:
        model: The dense model.
        layers: Its prunable layers.
        batches: The calibration split, as (images, labels) on the model's device.
        loss: The loss used in training.
        cache: The folder of the cache.
        key: A hash of everything that decides the results: weights, architecture, data, batches, loss, seed, and the
            versions of the packages that compute them.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    batches: list[tuple[Tensor, Tensor]]
    loss: nn.Module
    cache: Path
    key: str

    @classmethod
    def of(
        cls, config: TrainConfig, model: nn.Module, layers: tuple[Layer, ...], data: ImageData, device: torch.device
    ) -> Calibration:
        """Read the calibration split, and move it and the model to a device.

        Args:
            config: Settings of the model, the loss and the cache.
            model: The trained dense model.
            layers: Its prunable layers.
            data: The data set.
            device: The device on which scores are computed.
        """
        model.to(device)
        batches = [(x.to(device), y.to(device)) for x, y in data.calibration_dataloader()]
        smoothing = config.dense.label_smoothing
        images = {f"{i}/{part}": t for i, batch in enumerate(batches) for part, t in zip("xy", batch, strict=True)}
        contents = [tensors_digest(model.state_dict()), tensors_digest(images)]
        versions = [torch.__version__, timm.__version__]
        key = digest([*contents, architecture(config.model), smoothing, config.seed, data.fingerprint, versions])
        loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
        return cls(model, layers, batches, loss, Path(config.paths.cache), key)

    def images(self, most: int) -> list[Tensor]:
        """Return at most ``most`` images without their labels, in batches (B, C, H, W)."""
        kept: list[Tensor] = []
        for images, _ in self.batches:
            if not most:
                break
            kept.append(images[:most])
            most -= len(kept[-1])
        return kept

    def scores(self, signal: Scorer, node: dict[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return one score tensor per layer, and their source for ``result.json``.

        One calibration pass computes the three signals of the paper and this one. All runs of a sweep share the files.

        Args:
            signal: The signal.
            node: The configuration from which it was made. None is a class without arguments.
        """
        signals = {known.name: known for known in (*PAPER_SIGNALS, signal)}
        key = digest([self.key, [*signals], _users_code(signal, node), source_code()])
        parameters = prunable_parameters(self.model, self.layers)
        files = {name: f"scores/{key[:16]}/{name}.safetensors" for name in signals}

        @cache
        def statistics() -> dict[str, dict[str, Tensor]]:
            needs = frozenset[str]().union(*(s.needs for s in signals.values()))
            shared = {"input_covariance": self._covariances(parameters)} if "input_covariance" in needs else {}
            return collect(self.model, parameters, self.batches, self.loss, needs - shared.keys()) | shared

        def compute(name: str) -> dict[str, Tensor]:
            return score(signals[name], parameters, statistics(), normalised=True)

        scores, cached = cached_set({name: self.cache / file for name, file in files.items()}, signal.name, compute)
        source = {"key": key[:16], "cached": cached, "file": files[signal.name]}
        return {layer.name: scores[layer.name] for layer in self.layers}, source

    def set_scores(
        self, signal: Scorer, structure: WholeChannels, node: dict[str, Any] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the score of every set of channels, (sets,), by the group's name; the rest is as in :meth:`scores`."""
        if not isinstance(signal, SetScorer):
            scores, source = self.scores(signal, node)
            return structure.sums(scores), source
        key = digest([self.key, signal.name, _users_code(signal, node), source_code()])
        kind = "channels-dims" if any(len(group.strands) > 1 for group in structure.groups) else "channels"
        file = f"scores/{key[:16]}/{signal.name}-{kind}.safetensors"

        def compute() -> dict[str, Tensor]:
            parameters, needs = prunable_parameters(self.model, self.layers), signal.needs
            shared = {"input_covariance": self._covariances(parameters)} if "input_covariance" in needs else {}
            statistics = collect(self.model, parameters, self.batches, self.loss, needs - shared.keys()) | shared
            return structure.score(signal, parameters, statistics)

        scores, cached = cached_tensors(self.cache / file, compute)
        return scores, {"key": key[:16], "cached": cached, "file": file}

    def criterion_scores(
        self, scorer: Criterion, temperature: float, node: dict[str, Any] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return a criterion's scores, not normalised, so that they compare between layers; and their source.

        Args:
            scorer: The criterion.
            temperature: The temperature of GraSP's outputs (``mmp.pruning.calibration_statistics.collect``).
            node: The configuration from which it was made. None is one of this project's criteria.
        """
        settings = _users_code(scorer, node) or {
            key: value for key, value in vars(scorer).items() if key != "min_density"
        }
        key = digest([self.key, scorer.name, settings, temperature, source_code()])
        file = f"criteria/{key[:16]}.safetensors"

        def compute() -> dict[str, Tensor]:
            parameters = prunable_parameters(self.model, self.layers)
            statistics = collect(self.model, parameters, self.batches, self.loss, scorer.needs, temperature)
            return score(scorer, parameters, statistics)

        scores, cached = cached_tensors(self.cache / file, compute)
        source = {"key": key[:16], "cached": cached, "file": file}
        return {layer.name: scores[layer.name] for layer in self.layers}, source

    def _covariances(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the statistic ``input_covariance``; unless it is large, signals share it through the cache."""

        def compute() -> dict[str, Tensor]:
            return collect(self.model, parameters, self.batches, self.loss, ["input_covariance"])["input_covariance"]

        if sum(8 * p[0].numel() ** 2 for p in parameters.values()) > _MOST_SHARED:
            return compute()
        path = self.cache / "covariances" / f"{digest([self.key, source_code()])[:16]}.safetensors"
        covariances, _ = cached_tensors(path, compute)
        return {name: covariances[name].to(p.device) for name, p in parameters.items()}

    def targets(self, images: list[Tensor], megabytes: float, *chosen: Any) -> dict[str, Tensor]:
        """Return the outputs of every layer of the dense model, for reconstruction; all runs of a sweep share the file.

        Args:
            images: Batches of the calibration split.
            megabytes: The most that the outputs may need, in units of 10^6 bytes; at most a quarter of the memory. If
                they need more, the result is empty, nothing is stored, and reconstruction computes them itself.
            chosen: How the images were chosen, unless they are the first.
        """
        names, count = [layer.name for layer in self.layers], sum(map(len, images))
        of_one_image = dense_targets(self.model, names, [batch[:1] for batch in images[:1]], math.inf)
        quarter = min(usable_memory(), memory_of(images[0].device)) // 4
        most = min(megabytes * MEGABYTE, quarter)
        if not of_one_image or count * sum(rows.nbytes for rows in of_one_image.values()) > most:
            return {}
        path = self.cache / "targets" / f"{digest([self.key, count, *chosen, source_code()])[:16]}.safetensors"
        return cached_tensors(path, lambda: dense_targets(self.model, names, images, most))[0]

    def observe(self, ranges: RangesConfig) -> list[dict[str, float]]:
        """Return every layer's sparsity under each criterion at each global target.

        This is phase 1 of the method (docs/method.md). Each entry of the result maps layer names to sparsities, for one
        criterion at one target.
        """
        criteria, targets, temperature = ranges.criteria, ranges.targets, ranges.grasp_temperature
        names = [layer.name for layer in self.layers]
        decisive = [self.key, criteria, targets, temperature, source_code()]
        path = self.cache / "observed" / f"{digest(decisive)[:16]}.safetensors"

        def compute() -> dict[str, Tensor]:
            scorers = [criterion(name) for name in criteria]
            found = observe(self.model, self.layers, self.batches, self.loss, scorers, targets, temperature)
            return {
                key: torch.tensor([sparsities[name] for name in names], dtype=torch.float64)
                for key, sparsities in found.items()
            }

        observed, _ = cached_tensors(path, compute)
        return [dict(zip(names, values.tolist(), strict=True)) for values in observed.values()]


def _users_code(scorer: Scorer, node: dict[str, Any] | None) -> dict[str, Any]:
    """Return address, source and arguments of a user's signal or criterion; empty for one of this project."""
    described: dict[str, Any] = with_sources(
        node or {"_target_": f"{type(scorer).__module__}.{type(scorer).__qualname__}"}
    )
    return {} if "." not in described["_target_"] and "_source_" not in described else described


def source_code() -> str:
    """Return a hash of the code that computes statistics, scores, ranges and reconstruction targets."""
    return own_source_digest("pruning", "models", "tensors.py", "runs/calibration.py")


class Solver:
    """Re-solves the kept weights of a masked model. Images and dense layer outputs are loaded once and reused.

    Args:
        config: Ridge, number of images and size of the cache.
        calibration: The dense model with its calibration split.
    """

    def __init__(self, config: ReconstructConfig, calibration: Calibration) -> None:
        self._config, self._calibration = config, calibration

    @cached_property
    def _divided(self) -> tuple[list[Tensor], list[Tensor]]:
        """Images to tune on and images that are held out, (C, H, W) each."""
        return divided([*chain.from_iterable(self._calibration.images(self._config.tuning.images))])

    @cached_property
    def _data(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Batches of images for least squares, and the outputs of the dense layers for them."""
        config, calibration = self._config, self._calibration
        if config.name != JOINT:
            images = calibration.images(config.images)
            return images, calibration.targets(images, config.cache_megabytes)
        tuned, _ = self._divided  # images that are held out would favour weights that were solved on them
        images = stacked(tuned, config.images)
        return images, calibration.targets(images, config.cache_megabytes, JOINT, config.tuning.images)

    def solve(self, masks: Masks) -> tuple[nn.Module, list[LayerReport]]:
        """Return a pruned copy of the dense model, re-solved layer by layer, and a report per layer."""
        images, targets = self._data
        dense = self._calibration.model
        model = copy.deepcopy(dense)
        config = self._config
        return model, reconstruct(model, masks, images, config.ridge, dense, targets, config.rows_per_column)

    def tune(self, model: nn.Module, masks: Masks, checkpoint: Path) -> JointReport:
        """Tune the kept weights of a model of :meth:`solve` together, in place.

        Args:
            model: The model.
            masks: Its masks.
            checkpoint: A file from which an interrupted tuning continues.
        """
        tuned, held = map(singly, self._divided)
        tuning = Tuning.of(self._config.tuning)
        return reconstruct_jointly(model, masks, tuned, self._calibration.model, tuning, held, checkpoint=checkpoint)
