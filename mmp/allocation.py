"""Allocation: what each layer's sparsity becomes in a run - by a strategy, a search, or a criterion's own ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmp.build import instantiate
from mmp.calibration import Calibration
from mmp.config import PruneConfig
from mmp.criteria import CRITERIA, Criterion, criterion
from mmp.errors import MmpError, nearest
from mmp.identity import NO_CRITERION, digest, identity
from mmp.masks import pruned_count
from mmp.match import matched_weights
from mmp.plan import budget_target, choose_sparsities, layer_ranges, to_budget
from mmp.ranges import Range
from mmp.search import Trial, best_of, search, search_groups
from mmp.sizes import Sizes
from mmp.store import cached_tensors
from mmp.strategies import Strategy, global_sparsity

STRATEGY, SEARCHED = "strategy", "searched"
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
        baseline: The criterion that scores and allocates, in a run that is a baseline.
        ranking: The criterion that only allocates (``allocation=lamp``), while the signal says which weights go.
    """

    config: PruneConfig
    strategy: Strategy
    baseline: Criterion | None = None
    ranking: Criterion | None = None

    @classmethod
    def of(cls, config: PruneConfig, strategy: Strategy) -> Allocator:
        """Build what a configuration names.

        Raises:
            MmpError: if there is no such criterion or allocation, the two contradict each other, or the sweep to match
                does not hold the strategy.
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
        found = cls(config, strategy, baseline, criterion(name) if name in CRITERIA else None)
        if config.match:
            found.weights_to_match()
        return found

    @property
    def by_criterion(self) -> bool:
        """Whether a criterion decides, so that neither ranges nor budgets of strategies bind."""
        return self.baseline is not None or self.ranking is not None

    def weights_to_match(self) -> int:
        """Return how many weights the strategy of the sweep to match prunes."""
        config = self.config
        name = config.model.label or config.model.name
        return matched_weights(Path(config.match or ""), name, config.data.name, self.strategy.name, config.seed)

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
        decides = self.baseline or self.ranking
        target = budget_target(config.budget, self.strategy.name, sizes)
        if decides and (config.match or target is not None):
            pruned = self.weights_to_match() if config.match else round((target or 0.0) * sizes.weights)
            return self._ranked(decides, calibration, scores, pruned)
        observed = calibration.observe(config.ranges) if config.ranges.source == "observed" else None
        ranges = layer_ranges(layers, config.ranges, observed)
        if config.allocation.name == SEARCHED:
            return self._searched(calibration, ranges, sizes, reach, dense)
        sparsities = choose_sparsities(self.strategy, layers, ranges, config.ranges, config.budget, sizes)
        if decides is None:
            return Allocation(ranges, sparsities)
        pruned = sum(pruned_count(sparsities[layer.name], layer.size) for layer in layers)
        return self._ranked(decides, calibration, scores, pruned)

    def _ranked(
        self, decides: Criterion, calibration: Calibration, scores: Mapping[str, Tensor], pruned: int
    ) -> Allocation:
        if self.baseline is None:
            scores, _ = calibration.criterion_scores(decides, self.config.ranges.grasp_temperature)
        anything = {layer.name: ANYTHING for layer in calibration.layers}
        return Allocation(anything, decides.allocate(calibration.layers, scores, pruned))

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
        target = budget_target(config.budget, SEARCHED, sizes)

        def sparsities_at(positions: Mapping[str, float]) -> dict[str, float]:
            inside = {n: ranges[n].at(positions[group]) for group, names in groups.items() for n in names}
            inside = {layer.name: inside[layer.name] for layer in layers}
            return to_budget("these positions", inside, target, layers, config.ranges, config.budget, sizes)

        def evaluate(positions: Mapping[str, float]) -> tuple[float, float]:
            sparsities = sparsities_at(positions)
            return reach(sparsities), global_sparsity(layers, sparsities)

        def compute() -> dict[str, Tensor]:
            trials = search([*groups], evaluate, config.allocation.trials, config.seed, sparsity_varies=target is None)
            least = dense() - config.allocation.tolerance / 100 if target is None else None
            best = best_of(trials, least)
            numbers = {"accuracy": best.accuracy, "sparsity": best.sparsity, "trials": float(len(trials))}
            numbers |= {f"position/{name}": value for name, value in best.positions.items()}
            return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

        settings = identity(config)
        decisive = [
            settings[key] for key in ("allocation", "signal", "ranges", "budget", "reconstruct", "data", "seed")
        ]
        key = digest([calibration.key, decisive])
        found, cached = cached_tensors(Path(config.paths.cache) / "search" / f"{key[:16]}.safetensors", compute)
        positions = {name: float(found[f"position/{name}"]) for name in groups}
        best = Trial(positions, float(found["accuracy"]), float(found["sparsity"]))
        told = {"trials": int(found["trials"]), "cached": cached, "validation": best.accuracy, "positions": positions}
        return Allocation(ranges, sparsities_at(positions), told)
