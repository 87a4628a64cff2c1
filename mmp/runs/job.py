"""A pruning job: the parts that a configuration names, checked before any data is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from callbacks.averaging import AverageAtTarget
from callbacks.pruning import MaskPruning
from mmp.config.objects import build_strategy, instantiate
from mmp.config.schema import PruneConfig
from mmp.errors import MmpError
from mmp.models.networks import build_skeleton
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.criteria import criterion
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.prunable import find_layers, prunable_parameters
from mmp.pruning.schedules import OneShot, Schedule
from mmp.pruning.signals import Scorer
from mmp.pruning.structure import Structure
from mmp.runs.allocation import Allocator
from mmp.runs.calibration import Calibration
from mmp.training.step_memory import StepMemory
from mmp.training.trainer import check_config
from mmp.training.trial import try_training


@dataclass(frozen=True)
class PruneJob:
    """The parts that a configuration names. Building them finds every mistake in it before any data is read.

    Attributes:
        config: The validated configuration.
        signal: The signal that scores weights, unless the run is a baseline.
        allocator: Decides each layer's sparsity.
        schedule: The epochs in which masks are applied.
        steps: The memory that a training step needs, for each training of the job.
    """

    config: PruneConfig
    signal: Scorer
    allocator: Allocator
    schedule: Schedule
    steps: Mapping[str, StepMemory]

    @classmethod
    def of(cls, config: PruneConfig, folder: Path) -> PruneJob:
        """Build the parts of a configuration.

        Args:
            config: The validated configuration.
            folder: The run's folder.

        Raises:
            MmpError: on the first part that is wrong.
        """
        check_config(config, folder)
        signal = instantiate({"_target_": config.signal._target_}, "signal")
        schedule = instantiate(config.schedule, "schedule")
        allocator = Allocator.of(config, build_strategy(config.strategy))
        for name in config.ranges.criteria:
            criterion(name)
        _check_parts(config, signal, schedule, allocator.baseline)
        _check_schedule(config, schedule)
        steps = try_training(config, partial(_trial_masking, config.finetune.averaging))
        allocator.check_feasible(build_skeleton(config.model))
        return cls(config, signal, allocator, schedule, steps)

    def scores(self, calibration: Calibration, structure: Structure) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the score tensor of every layer of a structure, and their source for ``result.json``."""
        baseline, config = self.allocator.baseline, self.config
        if isinstance(structure, WholeChannels):
            return calibration.set_scores(self.signal, structure, vars(config.signal))
        if baseline is None:
            return calibration.scores(self.signal, vars(config.signal))
        return calibration.criterion_scores(baseline, config.ranges.grasp_temperature, config.criterion)

    def masking_callbacks(
        self,
        layers: tuple[Layer, ...],
        structure: Structure,
        scores: Mapping[str, Tensor],
        sparsities: Mapping[str, float],
    ) -> list[pl.Callback]:
        """Return the callbacks that apply the masks and, if the recipe says so, average the weights under them."""
        masking = MaskPruning(layers, scores, sparsities, self.schedule, structure)
        return [masking, *_averaging(self.config.finetune.averaging)]


def _averaging(decay: float) -> list[pl.Callback]:
    return [AverageAtTarget(decay)] if decay else []


def _trial_masking(decay: float, model: nn.Module) -> list[pl.Callback]:
    """Return the callbacks of a trial of fine-tuning: half of the weights are pruned, by their magnitude."""
    layers = find_layers(model)
    scores = {name: weight.detach().abs() for name, weight in prunable_parameters(model, layers).items()}
    return [MaskPruning(layers, scores, dict.fromkeys(scores, 0.5), OneShot()), *_averaging(decay)]


def _check_parts(config: PruneConfig, signal: Any, schedule: Any, baseline: Any) -> None:
    """Check that the classes in a configuration have the methods of a signal, a schedule and a criterion."""
    parts = {
        "signal": (config.signal._target_, signal, ("name", "needs", "score")),
        "schedule": (config.schedule.get("_target_"), schedule, ("fraction", "last_epoch")),
    }
    if baseline is not None:
        parts["criterion"] = (config.criterion.get("_target_"), baseline, ("name", "needs", "score"))
    for key, (address, part, members) in parts.items():
        if missing := [member for member in members if not hasattr(part, member)]:
            raise MmpError(f"{key}._target_={address}: is no {key}, since it has no {missing[0]}; correct the class")


def _check_schedule(config: PruneConfig, schedule: Schedule) -> None:
    """Check that a schedule fits re-solving, and ends before the training does."""
    if config.reconstruct.name != "none" and schedule.last_epoch > 0:
        raise MmpError(
            f"reconstruct={config.reconstruct.name} needs all masks at once, but the schedule ends in epoch "
            f"{schedule.last_epoch}; use schedule=one_shot"
        )
    if 0 < config.finetune.epochs <= schedule.last_epoch:
        raise MmpError(
            f"schedule reaches its final sparsity in epoch {schedule.last_epoch}, but finetune.epochs="
            f"{config.finetune.epochs}; raise finetune.epochs or shorten the schedule"
        )
