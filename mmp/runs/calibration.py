"""Calibration: scores and observed ranges of a dense model, computed once and shared by every job of a sweep."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mmp.pruning.calibration_statistics
import mmp.pruning.layers.forward
import mmp.pruning.layers.products
import mmp.pruning.reconstruction.least_squares
import mmp.pruning.row_systems
import mmp.pruning.signals
from mmp.cache import cached_set, cached_tensors
from mmp.config.identity import digest
from mmp.config.schema import PruneConfig, RangesConfig, TrainConfig
from mmp.data.module import ImageData
from mmp.pruning.calibration_statistics import collect
from mmp.pruning.criteria import Criterion, criterion
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.prunable import prunable_parameters
from mmp.pruning.masks import Masks
from mmp.pruning.reconstruction.reconstruct import LayerReport, dense_targets, reconstruct
from mmp.pruning.signals import PAPER_SIGNALS, Scorer, score
from mmp.pruning.sizes import MEGABYTE
from mmp.pruning.topk import pruned_count
from mmp.tensors import tensors_digest

_MOST_SHARED = 10**9  # bytes of covariances that are worth a file


@dataclass
class Calibration:
    """A dense model with the calibration split: what scores and observed ranges are computed from.

    ``key`` hashes everything that decides their values: weights, architecture, images in their batches, and loss.
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
            config: Names the model, the loss and the cache.
            model: The trained dense model.
            layers: Its prunable layers.
            data: The data set.
            device: Where scores are computed.
        """
        model.to(device)
        batches = [(x.to(device), y.to(device)) for x, y in data.calibration_dataloader()]
        smoothing = config.dense.label_smoothing
        images = {f"{i}/{part}": t for i, batch in enumerate(batches) for part, t in zip("xy", batch, strict=True)}
        architecture = [config.model.name, config.model.num_classes, config.model.in_chans, config.model.kwargs]
        contents = [tensors_digest(model.state_dict()), tensors_digest(images)]
        key = digest([*contents, architecture, smoothing, config.seed])
        loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
        return cls(model, layers, batches, loss, Path(config.paths.cache), key)

    def images(self, most: int) -> list[Tensor]:
        """Return at most so many images without their labels, in batches (B, C, H, W)."""
        kept: list[Tensor] = []
        for images, _ in self.batches:
            if not most:
                break
            kept.append(images[:most])
            most -= len(kept[-1])
        return kept

    def scores(self, signal: Scorer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return one score tensor per layer, and where they came from.

        One calibration pass serves the three signals of the paper and this one; a sweep shares their files.
        """
        signals = {known.name: known for known in (*PAPER_SIGNALS, signal)}
        key = digest([self.key, {name: _source_of(type(known)) for name, known in signals.items()}, source_code()])
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

    def criterion_scores(self, criterion: Criterion, temperature: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return a criterion's scores as they are, comparable between layers, and where they came from.

        Args:
            criterion: The criterion.
            temperature: Of GraSP's outputs (``mmp.pruning.calibration_statistics.collect``).
        """
        settings = {key: value for key, value in vars(criterion).items() if key != "min_density"}
        key = digest([self.key, criterion.name, settings, temperature, _source_of(type(criterion)), source_code()])
        file = f"criteria/{key[:16]}.safetensors"

        def compute() -> dict[str, Tensor]:
            parameters = prunable_parameters(self.model, self.layers)
            statistics = collect(self.model, parameters, self.batches, self.loss, criterion.needs, temperature)
            return score(criterion, parameters, statistics)

        scores, cached = cached_tensors(self.cache / file, compute)
        source = {"key": key[:16], "cached": cached, "file": file}
        return {layer.name: scores[layer.name] for layer in self.layers}, source

    def _covariances(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return what `collect` does for ``input_covariance``; signals share a file of it unless it would be large."""

        def compute() -> dict[str, Tensor]:
            return collect(self.model, parameters, self.batches, self.loss, ["input_covariance"])["input_covariance"]

        if sum(8 * p[0].numel() ** 2 for p in parameters.values()) > _MOST_SHARED:
            return compute()
        path = self.cache / "covariances" / f"{digest([self.key, source_code()])[:16]}.safetensors"
        covariances, _ = cached_tensors(path, compute)
        return {name: covariances[name].to(p.device) for name, p in parameters.items()}

    def targets(self, images: list[Tensor], megabytes: float) -> dict[str, Tensor]:
        """Return what every layer of the dense model makes of images, for reconstruction; a sweep shares its file.

        Args:
            images: What :meth:`images` returned.
            megabytes: If they need more (10^6 bytes), nothing is returned, and reconstruction computes them itself.
        """
        names, most = [layer.name for layer in self.layers], megabytes * MEGABYTE
        key = digest([self.key, sum(map(len, images)), most, source_code()])
        path = self.cache / "targets" / f"{key[:16]}.safetensors"
        return cached_tensors(path, lambda: dense_targets(self.model, names, images, most))[0]

    def observe(self, ranges: RangesConfig) -> list[dict[str, float]]:
        """Return every layer's sparsity under each criterion at each global target (METHOD, phase 1)."""
        criteria, targets, temperature = ranges.criteria, ranges.targets, ranges.grasp_temperature
        names = [layer.name for layer in self.layers]
        total = sum(layer.size for layer in self.layers)
        decisive = [self.key, criteria, targets, temperature, _source_of(Criterion), source_code()]
        path = self.cache / "observed" / f"{digest(decisive)[:16]}.safetensors"

        def compute() -> dict[str, Tensor]:
            scorers = [criterion(name) for name in criteria]
            parameters = prunable_parameters(self.model, self.layers)
            needs = frozenset[str]().union(*(s.needs for s in scorers))
            statistics = collect(self.model, parameters, self.batches, self.loss, needs, temperature)
            observed = {}
            for scorer in scorers:
                scores = score(scorer, parameters, statistics)
                for target in targets:
                    by_layer = scorer.allocate(self.layers, scores, pruned_count(target, total))
                    observed[f"{scorer.name}@{target}"] = torch.tensor(
                        [by_layer[n] for n in names], dtype=torch.float64
                    )
            return observed

        observed, _ = cached_tensors(path, compute)
        return [dict(zip(names, values.tolist(), strict=True)) for values in observed.values()]


def _source_of(kind: type) -> str:
    """Return the code of a class with all of its file around it: when any of it changes, scores are computed anew."""
    module = inspect.getmodule(kind)
    return inspect.getsource(kind if module is None else module)


def source_code() -> str:
    """Return the code that statistics, the scores made from them, and targets come from."""
    modules = (
        mmp.pruning.calibration_statistics,
        mmp.pruning.signals,
        mmp.pruning.layers.products,
        mmp.pruning.layers.forward,
        mmp.pruning.reconstruction.least_squares,
        mmp.pruning.row_systems,
    )
    return "".join(inspect.getsource(module) for module in modules)


class Solver:
    """Re-solves what masks leave of a dense model; the images and what its layers make of them are read once."""

    def __init__(self, config: PruneConfig, dense: nn.Module, calibration: Calibration) -> None:
        self._config, self._dense, self._calibration = config.reconstruct, dense, calibration

    @cached_property
    def _data(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        images = self._calibration.images(self._config.images)
        return images, self._calibration.targets(images, self._config.cache_megabytes)

    def solve(self, masks: Masks) -> tuple[nn.Module, list[LayerReport]]:
        """Return a pruned and re-solved copy, and a report per layer."""
        images, targets = self._data
        model = copy.deepcopy(self._dense)
        return model, reconstruct(model, masks, images, self._config.ridge, self._dense, targets)
