"""Allocation: what each layer's sparsity becomes in a run - by a strategy, a search, or a criterion's own ranking."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mmp.pruning.reconstruction.reconstruct
import mmp.pruning.search
from mmp.cache import cached_tensors
from mmp.config.identity import NO_CRITERION, SEARCHED, STRATEGY, digest, identity
from mmp.config.matching import matched_weights
from mmp.config.objects import build_budget, build_range_table, instantiate
from mmp.config.schema import PruneConfig
from mmp.errors import MmpError, nearest
from mmp.pruning.budgets import Budget, budget_target, global_sparsity, inwards, to_budget, with_pattern
from mmp.pruning.criteria import CRITERIA, Criterion, criterion
from mmp.pruning.layers.prunable import prunable_layers
from mmp.pruning.patterns import UNSTRUCTURED, Pattern
from mmp.pruning.plan import choose_sparsities, layer_ranges, plan_model
from mmp.pruning.ranges import Range, RangeTable
from mmp.pruning.search import best_of, search, search_groups
from mmp.pruning.sizes import MEGABYTE, Sizes
from mmp.pruning.strategies import Strategy
from mmp.pruning.topk import pruned_count
from mmp.runs.calibration import Calibration, source_code

log = logging.getLogger(__name__)

ANYTHING = Range(0.0, 1.0)  # what a layer may become where a criterion decides


@dataclass(frozen=True)
class Allocation:
    """What each layer becomes.

    Attributes:
        ranges: What its sparsity may be.
        sparsities: What it is.
        search: What ``result.json`` says of the search, if there was one.
    """

    ranges: Mapping[str, Range]
    sparsities: Mapping[str, float]
    search: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Allocator:
    """Decides every layer's sparsity.

    Attributes:
        config: The run's configuration.
        strategy: Where each layer goes in its range.
        pattern: What masks satisfy.
        baseline: The criterion that scores and allocates, in a run that is a baseline.
        ranking: The criterion that only allocates (``allocation=lamp``), while the signal says which weights go.
    """

    config: PruneConfig
    strategy: Strategy
    pattern: Pattern = UNSTRUCTURED
    baseline: Criterion | None = None
    ranking: Criterion | None = None

    @classmethod
    def of(cls, config: PruneConfig, strategy: Strategy) -> Allocator:
        """Build what a configuration names.

        Raises:
            MmpError: if there is no such criterion or allocation, or the two contradict each other.
        """
        name = config.allocation.name
        baseline = None
        if config.criterion["name"] != NO_CRITERION:
            given = {key: value for key, value in config.criterion.items() if key != "name"}
            baseline = instantiate(given, "criterion")
            if name != STRATEGY:
                said = f"criterion={config.criterion['name']}"
                raise MmpError(f"allocation={name}: {said} decides every layer's sparsity; set one of the two")
        if name not in (STRATEGY, SEARCHED, *CRITERIA):
            told = nearest(name, (STRATEGY, SEARCHED, *CRITERIA))
            raise MmpError(f"allocation.name={name}: no such allocation; {told}")
        if name == SEARCHED and config.reconstruct.name == "none":
            raise MmpError(
                "allocation=searched tells models apart by what they reach re-solved and untrained; set "
                "reconstruct=least_squares"
            )
        ranking = criterion(name) if name in CRITERIA else None
        return cls(config, strategy, Pattern.parse(config.pattern), baseline, ranking)

    @cached_property
    def table(self) -> RangeTable:
        """The range table of the configuration."""
        return build_range_table(self.config.ranges)

    @cached_property
    def budget(self) -> Budget:
        """The budget of the configuration."""
        return build_budget(self.config.budget)

    def check(self, model: nn.Module) -> None:
        """Raise before anything is trained if ranges, budget, pattern or the sweep to match cannot be had for a model.

        Args:
            model: The network; its weights may be on the ``meta`` device.

        Raises:
            MmpError: as `allocate` would.
        """
        config = self.config
        layers = prunable_layers(model)
        if not any(self.pattern.fits(layer.shape, layer.groups) for layer in layers):
            raise MmpError(f"pattern={self.pattern} fits the shape of no layer of this model; see docs/patterns.md")
        pruned = self._pruned(Sizes.of(model, layers))
        forced = sum(
            self.pattern.forced(layer.shape) for layer in layers if self.pattern.fits(layer.shape, layer.groups)
        )
        if pruned is not None and pruned < forced:
            share = forced / sum(layer.size for layer in layers)
            raise MmpError(f"pattern={self.pattern} alone prunes {share:.4f} of the weights; raise the budget to that")
        if pruned is None and config.ranges.source == "rules":
            budget = Budget() if config.allocation.name == SEARCHED else self.budget
            plan = plan_model(model, self.table, [self.strategy], budget, pattern=self.pattern)
            if not any(plan.patterned(layer, self.strategy.name) for layer in layers):
                least = 100 * (1 - self.pattern.kept / self.pattern.of)
                raise MmpError(
                    f"pattern={self.pattern} needs layers that are {least:g} % sparse, but ranges={config.ranges.name} "
                    "allows that in none that it fits; choose other ranges, or a budget"
                )

    def _pruned(self, sizes: Sizes) -> int | None:
        """Return how many weights a criterion is told to prune; None where ranges and a strategy say that.

        Raises:
            MmpError: if the sweep to match does not hold the strategy, or a budget in megabytes is out of reach.
        """
        config = self.config
        if self.baseline is None and self.ranking is None:
            return None
        if config.match:
            name = config.model.label or config.model.name
            named = (name, config.data.name, config.ranges.name, self.strategy.name)
            pattern = None if self.pattern == UNSTRUCTURED else str(self.pattern)
            return matched_weights(Path(config.match), *named, config.seed, pattern)
        target = budget_target(self.budget, self.strategy.name, sizes)
        if target is None:
            return None
        pruned = round(target * sizes.weights)
        if not 0 <= pruned <= sizes.weights:
            low, high = (sizes.sparse(count) / MEGABYTE for count in (sizes.weights, 0))
            raise MmpError(
                f"budget.megabytes={config.budget.megabytes:g} is out of reach: a criterion can prune to sizes from "
                f"{inwards(low, high, 3)} MB (the dense model has {sizes.dense / MEGABYTE:.3f} MB)"
            )
        return pruned

    def allocate(
        self,
        calibration: Calibration,
        scores: Mapping[str, Tensor],
        sizes: Sizes,
        reach: Callable[[Mapping[str, float]], float],
        dense: Callable[[], float],
    ) -> Allocation:
        """Return every layer's sparsity.

        Args:
            calibration: The dense model with its calibration split.
            scores: The run's scores.
            sizes: Bytes of the model's parts, for budgets in megabytes.
            reach: From sparsities to the validation accuracy of the re-solved model, for a search.
            dense: Returns the dense model's validation accuracy, for a search.

        Raises:
            MmpError: if the budget is out of reach.
        """
        config, layers = self.config, calibration.layers
        decides, pruned = self.baseline or self.ranking, self._pruned(sizes)
        if decides and pruned is not None:
            return self._ranked(decides, calibration, scores, pruned)
        observed = calibration.observe(config.ranges) if config.ranges.source == "observed" else None
        ranges = layer_ranges(layers, self.table, observed, pattern=self.pattern)
        if config.allocation.name == SEARCHED:
            return self._searched(calibration, ranges, sizes, reach, dense)
        sparsities = choose_sparsities(self.strategy, layers, ranges, self.table, self.budget, sizes, self.pattern)
        if decides is None:
            return Allocation(ranges, sparsities)
        pruned = sum(pruned_count(sparsities[layer.name], layer.size) for layer in layers)
        return self._ranked(decides, calibration, scores, pruned)

    def _ranked(
        self, decides: Criterion, calibration: Calibration, scores: Mapping[str, Tensor], pruned: int
    ) -> Allocation:
        if self.baseline is None:
            scores, _ = calibration.criterion_scores(decides, self.config.ranges.grasp_temperature)
        layers = calibration.layers
        sparsities = with_pattern(layers, decides.allocate(layers, scores, pruned), self.pattern)
        return Allocation({layer.name: ANYTHING for layer in layers}, sparsities)

    def _searched(
        self,
        calibration: Calibration,
        ranges: Mapping[str, Range],
        sizes: Sizes,
        reach: Callable[[Mapping[str, float]], float],
        dense: Callable[[], float],
    ) -> Allocation:
        config, layers = self.config, calibration.layers
        groups = search_groups(layers)
        target = budget_target(self.budget, SEARCHED, sizes)

        def sparsities_at(positions: Mapping[str, float]) -> dict[str, float]:
            inside = {n: ranges[n].at(positions[group]) for group, names in groups.items() for n in names}
            inside = {layer.name: inside[layer.name] for layer in layers}
            return to_budget("these positions", inside, target, layers, self.table, self.budget, sizes, self.pattern)

        def evaluate(positions: Mapping[str, float]) -> tuple[float, float]:
            sparsities = sparsities_at(positions)
            return reach(sparsities), global_sparsity(layers, sparsities)

        def compute() -> dict[str, Tensor]:
            trials = search([*groups], evaluate, config.allocation.trials, config.seed, sparsity_varies=target is None)
            least = dense() - config.allocation.tolerance / 100 if target is None else None
            best = best_of(trials, least)
            numbers = {"accuracy": best.accuracy, "sparsity": best.sparsity, "trials": float(len(trials))}
            numbers |= {"short": max(0.0, (least or 0.0) - best.accuracy)}
            numbers |= {f"position/{name}": value for name, value in best.positions.items()}
            return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

        settings = identity(config)
        decisive = [
            settings[key] for key in ("allocation", "signal", "ranges", "budget", "reconstruct", "data", "seed")
        ]
        code = [
            inspect.getsource(module)
            for module in (mmp.pruning.search, mmp.pruning.reconstruction.reconstruct, sys.modules[__name__])
        ]
        key = digest([calibration.key, decisive, str(self.pattern), source_code(), code])
        found, cached = cached_tensors(Path(config.paths.cache) / "search" / f"{key[:16]}.safetensors", compute)
        if found["short"] > 0:
            log.warning(
                "allocation=searched: no trial is within allocation.tolerance=%g points of the dense model; the most "
                "accurate, %.2f points short of that, is taken (raise allocation.trials, or lower the ranges)",
                config.allocation.tolerance,
                100 * float(found["short"]),
            )
        positions = {name: float(found[f"position/{name}"]) for name in groups}
        reached = float(found["accuracy"])
        told = {"trials": int(found["trials"]), "cached": cached, "validation": reached, "positions": positions}
        return Allocation(ranges, sparsities_at(positions), told)
