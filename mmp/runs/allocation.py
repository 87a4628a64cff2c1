"""Allocation: each layer's sparsity in a run, decided by a strategy, by a search, or by a criterion's ranking."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmp.cache import cached_tensors
from mmp.config.identity import digest, identity, settings_of
from mmp.config.matching import StrategyRun, matched_weights
from mmp.config.objects import build_budget, build_range_table, instantiate
from mmp.config.schema import NO_CRITERION, SEARCHED, STRATEGY, PruneConfig
from mmp.config.source_code import own_source_digest
from mmp.errors import MmpError, nearest
from mmp.models.networks import build_bare
from mmp.pruning.budgets import Budget
from mmp.pruning.criteria import CRITERIA, UNLIMITED, Criterion, criterion, ranked_sparsities, weights_to_prune
from mmp.pruning.layers.layer import count_weights
from mmp.pruning.layers.prunable import prunable_layers
from mmp.pruning.patterns import UNSTRUCTURED, Channels, Pattern, no_channels, parse
from mmp.pruning.plan import choose_sparsities, plan_model
from mmp.pruning.ranges import Range, RangeTable
from mmp.pruning.search import best_of, require_optuna, search, search_groups
from mmp.pruning.sizes import Sizes
from mmp.pruning.strategies import Strategy
from mmp.pruning.structure import Structure, ranges_of
from mmp.runs.calibration import Calibration, source_code
from mmp.runs.structure import structure_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Allocation:
    """The sparsity of every layer.

    Attributes:
        ranges: The range in which each layer's sparsity may be.
        sparsities: Each layer's sparsity, a fraction.
        search: The entry of ``result.json`` about the search, if there was one.
    """

    ranges: Mapping[str, Range]
    sparsities: Mapping[str, float]
    search: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Allocator:
    """Decides every layer's sparsity.

    Attributes:
        config: The run's configuration.
        strategy: The position of each layer in its range.
        pattern: The pattern of the masks.
        baseline: The criterion that scores and allocates, in a run that is a baseline.
        ranking: The criterion that only allocates (``allocation=lamp``); the signal decides which weights are pruned.
    """

    config: PruneConfig
    strategy: Strategy
    pattern: Pattern | Channels = UNSTRUCTURED
    baseline: Criterion | None = None
    ranking: Criterion | None = None

    @classmethod
    def of(cls, config: PruneConfig, strategy: Strategy) -> Allocator:
        """Build the parts that a configuration names.

        Raises:
            MmpError: if there is no such criterion or allocation, or the two contradict each other.
        """
        name = config.allocation.name
        baseline = None
        if config.criterion["name"] != NO_CRITERION:
            arguments = {key: value for key, value in config.criterion.items() if key != "name"}
            baseline = instantiate(arguments, "criterion")
            if name != STRATEGY:
                chosen = f"criterion={config.criterion['name']}"
                raise MmpError(f"allocation={name}: {chosen} decides every layer's sparsity; set one of the two")
        if name not in (STRATEGY, SEARCHED, *CRITERIA):
            hint = nearest(name, (STRATEGY, SEARCHED, *CRITERIA))
            raise MmpError(f"allocation.name={name}: no such allocation; {hint}")
        if name == SEARCHED and config.reconstruct.name == "none":
            raise MmpError(
                "allocation=searched compares models by their accuracy after re-solving, without training; set "
                "reconstruct=least_squares"
            )
        if name == SEARCHED:
            require_optuna()
        ranking = criterion(name) if name in CRITERIA else None
        return cls(config, strategy, parse(config.pattern), baseline, ranking)

    @cached_property
    def table(self) -> RangeTable:
        """The range table of the configuration."""
        return build_range_table(self.config.ranges)

    @cached_property
    def budget(self) -> Budget:
        """The budget of the configuration."""
        return build_budget(self.config.budget)

    def check_feasible(self, model: nn.Module) -> None:
        """Check, before anything is trained, that the model can satisfy ranges, budget, pattern and matched sweep.

        Args:
            model: The network; its weights may be on the ``meta`` device.

        Raises:
            MmpError: for every reason for which :meth:`allocate` would raise one.
        """
        if isinstance(self.pattern, Channels):
            self._require_no_ranking(self.pattern)
            plan_model(model, self.table, [self.strategy], self.own_budget, structure=self.structure(model))
            return
        layers = prunable_layers(model)
        fitting = self.pattern.fitting(layers)
        pruned = self._pruned_by_criterion(Sizes.of(model, layers))
        if pruned is not None:
            forced = sum(self.pattern.forced(layer) for layer in fitting)
            if pruned < forced:
                share = forced / count_weights(layers)
                raise MmpError(
                    f"pattern={self.pattern} alone prunes {share:.4f} of the weights; raise the budget to that"
                )
        elif self.config.ranges.source == "rules":
            plan_model(model, self.table, [self.strategy], self.own_budget, pattern=self.pattern).require_pattern()

    @property
    def own_budget(self) -> Budget:
        """The budget of the strategy; none if a search takes its place."""
        return Budget() if self.config.allocation.name == SEARCHED else self.budget

    def structure(self, model: nn.Module) -> Structure:
        """Return what is pruned as a whole in a model.

        Args:
            model: The network; its weights may be on the ``meta`` device.
        """
        return self._channels if isinstance(self.pattern, Channels) else structure_of(self.config, model, self.pattern)

    @cached_property
    def _channels(self) -> Structure:
        """The channels of the architecture. They are found by running a network, whatever its weights are."""
        return structure_of(self.config, build_bare(self.config.model), self.pattern)

    def _require_no_ranking(self, pattern: Channels) -> None:
        """Raise if criteria decide anything; they compare single weights."""
        config = self.config
        if self.baseline is not None:
            raise MmpError(no_channels(f"criterion={config.criterion['name']}", pattern))
        if self.ranking is not None:
            raise MmpError(no_channels(f"allocation={config.allocation.name}", pattern))
        if config.ranges.source != "rules":
            raise MmpError(no_channels(f"ranges={config.ranges.name}", pattern))

    def _pruned_by_criterion(self, sizes: Sizes) -> int | None:
        """Return how many weights a criterion has to prune, None if ranges and a strategy decide that.

        Raises:
            MmpError: if the matched sweep does not contain the strategy, or a budget in megabytes is out of reach.
        """
        config = self.config
        if self.baseline is None and self.ranking is None:
            return None
        if config.match:
            run = StrategyRun(
                model=config.model.title,
                data=config.data.name,
                ranges=config.ranges.name,
                strategy=self.strategy.name,
                seed=config.seed,
                pattern=None if self.pattern == UNSTRUCTURED else str(self.pattern),
            )
            return matched_weights(Path(config.match), run)
        target = self.budget.target(self.strategy.name, sizes)
        return None if target is None else weights_to_prune(target)

    def allocate(
        self, calibration: Calibration, structure: Structure, scores: Mapping[str, Tensor], validation: Validation
    ) -> Allocation:
        """Return every layer's sparsity.

        Args:
            calibration: The dense model with its calibration split.
            structure: What is pruned as a whole.
            scores: The run's scores.
            validation: Validation accuracies, for a search.

        Raises:
            MmpError: if the budget is out of reach.
        """
        config, layers = self.config, calibration.layers
        ranking, pruned = self.baseline or self.ranking, self._pruned_by_criterion(Sizes.of(calibration.model, layers))
        if ranking and pruned is not None:
            return self._ranked(ranking, calibration, scores, pruned)
        observed = calibration.observe(config.ranges) if config.ranges.source == "observed" else None
        ranges = ranges_of(structure, self.table, observed)
        if config.allocation.name == SEARCHED:
            return AllocationSearch(self, calibration, structure, ranges, validation).run()
        sparsities = choose_sparsities(self.strategy, ranges, self.table, structure, self.budget)
        if ranking is None:
            return Allocation(ranges, sparsities)
        return self._ranked(ranking, calibration, scores, structure.pruned(sparsities))

    def _ranked(
        self, ranking: Criterion, calibration: Calibration, scores: Mapping[str, Tensor], pruned: int
    ) -> Allocation:
        """Return the allocation of a criterion that ranks all weights and prunes the lowest."""
        if self.baseline is None:
            scores, _ = calibration.criterion_scores(ranking, self.config.ranges.grasp_temperature)
        layers, pattern = calibration.layers, self.pattern
        assert isinstance(pattern, Pattern)  # check_feasible refuses a ranking of whole channels
        sparsities = ranked_sparsities(ranking, layers, scores, pruned, pattern)
        return Allocation({layer.name: UNLIMITED for layer in layers}, sparsities)


class Validation(Protocol):
    """Validation accuracies that a search compares, as fractions."""

    def dense_accuracy(self) -> float:
        """Return the accuracy of the dense model."""

    def accuracy_at(self, sparsities: Mapping[str, float]) -> float:
        """Return the accuracy of the model pruned to these sparsities and re-solved, without training."""


@dataclass(frozen=True)
class AllocationSearch:
    """A search for the position of each group of layers in its ranges (``allocation=searched``).

    Attributes:
        allocator: Configuration, range table, budget and pattern.
        calibration: The dense model with its calibration split.
        structure: What is pruned as a whole.
        ranges: The range of every layer.
        validation: Validation accuracies of the trials and of the dense model.
    """

    allocator: Allocator
    calibration: Calibration
    structure: Structure
    ranges: Mapping[str, Range]
    validation: Validation

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The names of the layers in each group."""
        return search_groups(self.structure.layers)

    def run(self) -> Allocation:
        """Return the allocation of the best trial; every run with the same search shares its result in the cache."""
        best, cached = cached_tensors(self._cache_file(), self._best_trial)
        config = self.allocator.config.allocation
        if best["short"] > 0:
            log.warning(
                "allocation=searched: no trial is within allocation.tolerance=%g points of the dense model; using the "
                "most accurate one, which is %.2f points below that (raise allocation.trials, or lower the ranges)",
                config.tolerance,
                100 * float(best["short"]),
            )
        positions = {name: float(best[f"position/{name}"]) for name in self.groups}
        record = {
            "trials": int(best["trials"]),
            "cached": cached,
            "validation": float(best["accuracy"]),
            "positions": positions,
        }
        return Allocation(self.ranges, self._sparsities(positions), record)

    def _sparsities(self, positions: Mapping[str, float]) -> dict[str, float]:
        """Return every layer's sparsity at positions of the groups, shifted to the budget."""
        allocator, layers = self.allocator, self.structure.layers
        position = {name: positions[group] for group, names in self.groups.items() for name in names}
        inside = {layer.name: self.ranges[layer.name].at(position[layer.name]) for layer in layers}
        return self.structure.to_budget(inside, allocator.table, allocator.budget, SEARCHED, "these positions")

    def _evaluate(self, positions: Mapping[str, float]) -> tuple[float, float]:
        """Return the validation accuracy and the global sparsity at positions of the groups."""
        sparsities = self._sparsities(positions)
        return self.validation.accuracy_at(sparsities), self.structure.sparsity(sparsities)

    def _best_trial(self) -> dict[str, Tensor]:
        """Search, and return the numbers of the best trial as tensors for the cache."""
        config, free = self.allocator.config, not self.allocator.budget.sets(SEARCHED)
        trials = search([*self.groups], self._evaluate, config.allocation.trials, config.seed, sparsity_varies=free)
        least = self.validation.dense_accuracy() - config.allocation.tolerance / 100 if free else None
        best = best_of(trials, least)
        numbers = {"accuracy": best.accuracy, "sparsity": best.sparsity, "trials": float(len(trials))}
        numbers |= {"short": max(0.0, (least or 0.0) - best.accuracy)}
        numbers |= {f"position/{name}": value for name, value in best.positions.items()}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

    def _cache_file(self) -> Path:
        """Return the file of the best trial; its name hashes all settings, data and code that decide the result."""
        config = self.allocator.config
        settings = identity(settings_of(config))
        decisive = [
            settings[key] for key in ("allocation", "signal", "ranges", "budget", "reconstruct", "data", "seed")
        ]
        code = [source_code(), own_source_digest("data", "training/evaluation.py", "runs/allocation.py")]
        key = digest([self.calibration.key, decisive, str(self.allocator.pattern), code])
        return Path(config.paths.cache) / "search" / f"{key[:16]}.safetensors"
