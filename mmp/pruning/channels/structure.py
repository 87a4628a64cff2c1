"""Whole channels as the structure of pruning: every group of coupled channels has a range and a sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mmp.errors import MmpError, listed
from mmp.pruning.budgets import Budget
from mmp.pruning.channels.budget import Allowance, ChannelShift
from mmp.pruning.channels.confirmed import confirmed_groups
from mmp.pruning.channels.costs import Costs, positions_of
from mmp.pruning.channels.group import ChannelGroup
from mmp.pruning.channels.masks import masks_of_sets, pruned_sets, set_scores, sets_per_step
from mmp.pruning.channels.roles import group_layers
from mmp.pruning.channels.running import device_to_run, running
from mmp.pruning.counts import sparsity_of
from mmp.pruning.layers.layer import Layer, count_weights
from mmp.pruning.layers.prunable import find_layers
from mmp.pruning.masks import Masks
from mmp.pruning.patterns import Channels
from mmp.pruning.ranges import Range, RangeTable
from mmp.pruning.signals import Scorer, score


@runtime_checkable
class SetScorer(Protocol):
    """A signal with a score of its own for each set of channels.

    With dimensions of heads, it scores the pairs of queries and keys of every head, and the values of every head. No
    weight reads a pair: its group has no `readers`.
    """

    def score_sets(
        self, group: ChannelGroup, weights: Mapping[str, Tensor], statistics: Mapping[str, Mapping[str, Tensor]]
    ) -> Tensor:
        """Return the importance of every set, (sets,); higher is more important.

        Args:
            group: The group.
            weights: The prunable weights, by name.
            statistics: The statistics that the signal needs, by statistic and by weight.
        """


@dataclass(frozen=True)
class WholeChannels:
    """The groups of coupled channels of one network, which are pruned in whole sets.

    Attributes:
        pattern: The multiple of channels that layers keep.
        weights: The network's prunable layers, which get the masks.
        groups: The groups, all of whose readers are prunable layers.
        layers: A layer record for each group.
        costs: What the network costs without some of the sets.
    """

    pattern: Channels
    weights: tuple[Layer, ...]
    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    costs: Costs

    @classmethod
    def of(
        cls,
        network: nn.Module,
        image: Tensor,
        pattern: Channels | None = None,
        groups: Sequence[ChannelGroup] | None = None,
        dimensions: bool = False,
    ) -> WholeChannels:
        """Find the groups of a network.

        Args:
            network: Any network. It is not changed.
            image: One image of the network's real size, (1, C, H, W).
            pattern: The multiple; 16 if None.
            groups: The groups of :func:`mmp.pruning.channels.confirmed.confirmed_groups`, if they are known already.
            dimensions: Whether attention loses dimensions of its heads in place of whole heads.

        Raises:
            MmpError: if no group can lose a channel, or if the network does not run on the image.
        """
        pattern = pattern or Channels()
        image = image[:1] if isinstance(image, Tensor) else image
        device = device_to_run(network, f"pattern={pattern}")
        with running(network, image, f"pattern={pattern}"):
            positions = positions_of(network, image[[0]].to(device))  # raises if there is no image
        weights = find_layers(network)
        prunable = {layer.name for layer in weights}
        found = confirmed_groups(network, image, dimensions) if groups is None else groups
        kept = tuple(group for group in found if all(part.name in prunable for part in group.decisive))
        _require_channels(network, kept, pattern)
        layers = group_layers(kept, weights, positions)
        return cls(pattern, weights, kept, layers, Costs.of(network, kept, positions, prunable))

    @cached_property
    def steps(self) -> list[int]:
        """For each group, the number of sets that are kept or pruned together."""
        return [sets_per_step(group, self.pattern.multiple) for group in self.groups]

    def removed(self, sparsities: Mapping[str, float]) -> list[int]:
        """Return the number of sets that each group loses at these sparsities."""
        return [pruned_sets(group, sparsities[group.name], self.pattern.multiple) for group in self.groups]

    def allowed(self, ranges: Mapping[str, Range]) -> dict[str, Range]:
        """Return the ranges as they are: any share of channels is permitted, rounded down to whole multiples."""
        return dict(ranges)

    def to_budget(
        self, sparsities: Mapping[str, float], table: RangeTable, budget: Budget, strategy: str, subject: str
    ) -> dict[str, float]:
        """Return sparsities in whole multiples, shifted to the budget (:class:`ChannelShift`)."""
        shift = ChannelShift.of(self.layers, self.steps, table)
        allowance = Allowance.of(budget, strategy, self.costs)
        counts = shift.to_budget(sparsities, allowance, subject) if allowance else shift.counts(sparsities)
        return {
            layer.name: sparsity_of(count, layer.shape[0]) for layer, count in zip(self.layers, counts, strict=True)
        }

    def pruned(self, sparsities: Mapping[str, float]) -> int:
        """Return the number of parameters that are removed."""
        return self.costs.parameters - self.costs.parameters_left(self.removed(sparsities))

    def sparsity(self, sparsities: Mapping[str, float]) -> float:
        """Return the share of all parameters that is removed."""
        return self.pruned(sparsities) / self.costs.parameters

    def summary(self, sparsities: Mapping[str, float]) -> dict[str, Any]:
        """Return the totals of a plan at these sparsities: those of the smaller network.

        ``multiply_adds`` is the share of the dense network's that is left.
        """
        costs, removed = self.costs, self.removed(sparsities)
        left = costs.parameters_left(removed)
        return {
            "sparsity": 1 - costs.weights_left(removed) / count_weights(self.weights),
            "sparsity_all": 1 - left / costs.parameters,
            "parameters_left": left,
            "bytes": costs.bytes_left(removed),
            "multiply_adds": costs.multiply_adds_left(removed) / costs.multiply_adds,
        }

    def sums(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the score of every set, float64 (sets,), by the group's name: the sum of the scores of its weights.

        Args:
            scores: A tensor for each prunable weight, by name, of its shape.
        """
        return {group.name: set_scores(group, scores) for group in self.groups}

    def score(
        self,
        scorer: Scorer,
        weights: Mapping[str, nn.Parameter],
        statistics: Mapping[str, Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Return a signal's score of every set, float64 (sets,), by the group's name.

        It is the sum of the scores of the set's weights, each layer's scaled to a largest score in [0.5, 1), unless the
        signal scores sets itself, as Optimal Brain Surgeon does.

        Args:
            scorer: The signal.
            weights: The prunable weights, by name.
            statistics: The statistics of :func:`mmp.pruning.calibration_statistics.collect` that the signal needs.
        """
        if isinstance(scorer, SetScorer):
            found = {}
            for group in self.groups:
                each = [scorer.score_sets(strand, weights, statistics) for strand in group.strands]
                found[group.name] = torch.cat(each) if len(each) > 1 else each[0]
            _require_one_each(self.groups, found, f"signal={scorer.name}: score_sets returned ")
            return found
        return self.sums(score(scorer, weights, statistics, normalised=True))

    def grid(
        self,
        scores: Mapping[str, Tensor],
        strategies: Mapping[str, Mapping[str, float]],
        fraction: float = 1.0,
    ) -> dict[str, Masks]:
        """Return the masks of several strategies from one score for each set (:meth:`score`).

        Raises:
            MmpError: if scores or sparsities are not those of the groups.
        """
        _require_one_each(self.groups, scores)
        grid = {}
        for strategy, sparsities in strategies.items():
            _require_names(self.groups, sparsities, "sparsities")
            kept = {layer.name: torch.ones(layer.shape, dtype=torch.bool, device="cpu") for layer in self.weights}
            scaled = {name: fraction * share for name, share in sparsities.items()}
            grid[strategy] = masks_of_sets(self.groups, kept, scores, scaled, self.pattern.multiple)
        return grid


def _require_channels(network: nn.Module, groups: Sequence[ChannelGroup], pattern: Channels) -> None:
    name = type(network).__name__
    if not groups:
        raise MmpError(
            f"pattern={pattern}: no channels of {name} can be removed, because every layer mixes them or passes them "
            "to the output; use pattern=none"
        )
    if not any(pruned_sets(group, 1.0, pattern.multiple) for group in groups):
        most = max(len(group) for group in groups)
        raise MmpError(
            f"pattern={pattern}: layers keep multiples of {pattern.multiple} channels, but no group of {name} has more "
            f"than {most}; use a smaller multiple, such as pattern=channels:{max(1, most // 4)}"
        )


def _require_names(groups: Sequence[ChannelGroup], given: Mapping[str, Any], subject: str) -> None:
    names = {group.name for group in groups}
    if names != given.keys():
        odd = listed(sorted(names ^ given.keys()), 5)
        raise MmpError(f"{subject} and groups of channels have different names: {odd}; each group needs one entry")


def _require_one_each(groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], subject: str = "") -> None:
    _require_names(groups, scores, f"{subject}scores")
    for group in groups:
        shape = tuple(scores[group.name].shape)
        sets = sum(map(len, group.strands))
        if shape != (sets,):
            raise MmpError(
                f"{subject}scores of the shape {shape} for the {sets} sets of {group.name!r}; each set needs one"
            )
