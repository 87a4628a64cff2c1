"""The whole method in one call: ``mmp.prune(model, budget=0.9, images=batches)``.

This module is a good place to start reading. :func:`prune_all` takes the steps of the method one after the other:

1. Which sparsities may each layer have? (:mod:`mmp.pruning.layers`, :mod:`mmp.pruning.ranges`)
2. Which sparsity does each strategy choose? A budget shifts all of them. (:mod:`mmp.pruning.strategies`,
   :mod:`mmp.pruning.budgets`) The answers to both are the plan. (:mod:`mmp.pruning.plan`)
3. Which weights are pruned? Every weight has a score, and masks prune the lowest scores of each layer.
   (:mod:`mmp.pruning.calibration_statistics`, :mod:`mmp.pruning.signals`, :mod:`mmp.pruning.masks`)
4. Which values do the kept weights get, so that every layer's outputs stay close to the dense model's?
   (:mod:`mmp.pruning.reconstruction`)

``mmp-prune`` takes the same steps with the same functions, and so gets the same masks and weights. It adds data sets,
training, caches and folders of results. (:mod:`mmp.runs`)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmp.config.choices import choose, read_choice
from mmp.config.objects import build_range_table, instantiate
from mmp.config.schema import JOINT, RangesConfig, ReconstructConfig
from mmp.config.validate import RECONSTRUCTIONS, read_ranges, read_reconstruct
from mmp.errors import MmpError
from mmp.plan import load_budget, load_ranges, load_strategies, load_strategy, make_plan
from mmp.pruning.budgets import Budget
from mmp.pruning.calibration_images import CalibrationImages, Images, Labels
from mmp.pruning.calibration_statistics import Loss, collect
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.criteria import UNLIMITED, Criterion, observe, ranked_sparsities, weights_to_prune
from mmp.pruning.criteria import criterion as criterion_of
from mmp.pruning.emptied import warn_of_emptied
from mmp.pruning.layers.checks import checked_layers
from mmp.pruning.layers.eval_mode import evaluating
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.prunable import prunable_parameters
from mmp.pruning.masks import MaskEnforcer, Masks
from mmp.pruning.patterns import Channels, Pattern, no_channels, parse
from mmp.pruning.plan import Plan
from mmp.pruning.ranges import RangeTable
from mmp.pruning.reconstruction.joint import Tuning, reconstruct_jointly
from mmp.pruning.reconstruction.reconstruct import dense_targets
from mmp.pruning.reconstruction.reconstruct import reconstruct as reconstruct_layers
from mmp.pruning.reconstruction.tuning_images import divided, singly, stacked
from mmp.pruning.result import MOST_IMAGES, PruneResult
from mmp.pruning.signals import Scorer, score
from mmp.pruning.sizes import MEGABYTE, Sizes
from mmp.pruning.strategies import Strategy


def prune(
    model: nn.Module,
    budget: Budget | float | None = None,
    images: Images | None = None,
    labels: Labels | None = None,
    *,
    signal: Scorer | str | None = None,
    strategy: Strategy | str = "balanced",
    ranges: RangeTable | str | None = None,
    pattern: Pattern | Channels | str = "none",
    reconstruct: str | None = None,
    criterion: Criterion | str | None = None,
    loss: Loss = cross_entropy,
) -> PruneResult:
    """Prune a trained model.

    Names and defaults are the same as on the command line, with two exceptions. If there are images, the kept
    weights are re-solved, because that takes seconds and needs no labels. Names are those of the built-in ``conf/``,
    since only commands read the ``conf/`` of the working folder: pass an object instead, such as a ``Strategy``.

    Args:
        model: Any trained ``nn.Module``, on any device. It is not changed.
        budget: The global sparsity, such as 0.9, or ``Budget(megabytes=5)``. None leaves every layer at
            the strategy's sparsity.
        images: Calibration images as the model was trained on, normalised: a tensor (B, C, H, W), or an iterable of
            such batches or of (images, labels) pairs, for instance a ``DataLoader``. It is read once. A few hundred
            images are enough.
        labels: Labels of the images, if these do not come in pairs: a tensor (B,), or an iterable of batches of it.
        signal: The score of a weight: ``magnitude`` without images; ``obs`` from images; ``gradient``, ``product``,
            ``fisher`` and ``obs_fisher`` from images and labels; or an object such as ``Magnitude()``. None is
            ``magnitude``.
        strategy: The position of each layer in its range: a name in ``conf/strategy``, or a ``Strategy``.
        ranges: The sparsities that a layer may have: a name in ``conf/ranges``, or a ``RangeTable``. ``observed``
            needs images and labels. None is ``generic``, and with ``pattern="channels"`` it is ``channels``.
        pattern: A structure that masks satisfy: ``none``, N:M such as ``2:4``, blocks such as ``4x1``, or ``channels``,
            which needs images. Whole channels are pruned then, a budget is the share of all parameters, and
            ``result.smaller()`` is the network without them.
        reconstruct: ``least_squares`` re-solves the kept weights on the first 512 images; ``joint`` then tunes them
            together on the first 3000, of which it holds out a tenth, for minutes; ``none`` leaves them as they are.
            None is ``least_squares`` if there are images.
        criterion: A baseline in place of signal and strategy, such as ``lamp``: it ranks all weights of the model
            together and prunes to the budget. Without a budget it prunes as many weights as the strategy does. It
            scores the weights itself, so a signal beside it is an error; a command, whose signal always has a value,
            ignores the signal.
        loss: The loss used in training, a function of outputs and labels: the mean of a loss of each image.

    Returns:
        The pruned copy with its masks, its plan and a report per layer.

    Raises:
        MmpError: if a name is unknown, a setting needs images or labels that are not given, the images do not fit the
            model, weights or images are not finite, or the budget is out of reach.

    Example:
        >>> import mmp, torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
        ... )
        >>> result = mmp.prune(model, budget=0.5, images=torch.randn(256, 3, 8, 8))
        >>> print(result)
        Sequential: signal magnitude, strategy balanced, ranges generic, budget 50 %
        layer     role          range (%)  sparsity (%)  pruned  weights  error (%)  re-solved (%)
        0.weight  stem         0.0 - 10.0           5.0      43      864        0.0            0.0
        2.weight  conv        50.0 - 85.0          66.5  12,264   18,432       40.2           13.8
        5.weight  classifier   0.0 - 50.0          24.0   2,461   10,240       18.1           16.3
        Pruned: 14,768 of 29,536 prunable weights (50.00 %, or 49.82 % of all 29,642 parameters).
        Size: 0.063 MB with one bit per prunable weight for the masks; dense 0.119 MB.
        Re-solved: 3 of 3 layers.
        Mean output error: from 19.4 % to 10.0 % of the variance of the dense outputs.
        >>> int((result.model[2].weight == 0).sum())
        12264
    """
    if criterion is None or criterion == "none":
        results = prune_all(
            model,
            budget,
            images,
            labels,
            signal="magnitude" if signal is None else signal,
            strategies=[strategy],
            ranges=ranges,
            pattern=pattern,
            reconstruct=reconstruct,
            loss=loss,
        )
    else:
        if signal is not None:
            given, scoring = _scorer("signal", signal).name, _scorer("criterion", criterion).name
            raise MmpError(f"signal={given}: criterion={scoring} scores the weights; set one of the two")
        settings = _Settings.of(ranges, pattern, reconstruct, images, loss)
        results = _prune_by(criterion, model, budget, images, labels, strategy, settings)
    ((_, result),) = results
    return result


def prune_all(
    model: nn.Module,
    budget: Budget | float | None = None,
    images: Images | None = None,
    labels: Labels | None = None,
    *,
    signal: Scorer | str = "magnitude",
    strategies: Iterable[Strategy | str] | Strategy | str | None = None,
    ranges: RangeTable | str | None = None,
    pattern: Pattern | Channels | str = "none",
    reconstruct: str | None = None,
    loss: Loss = cross_entropy,
) -> Iterator[tuple[str, PruneResult]]:
    """Prune a trained model by several strategies, from one scoring of its weights.

    Scores and all masks are made at once. A model is copied and re-solved only when the loop reaches it, so that the
    results need not be in memory together; ``dict(mmp.prune_all(...))`` collects them by the names of their strategies.
    Each result is the same as the result of :func:`prune` with its strategy. Names are those of the built-in ``conf/``:
    in place of a file in your own ``conf/``, pass an object, such as a ``Strategy``.

    Args:
        model: See :func:`prune`. It must stay as it is until the loop has ended.
        budget: See :func:`prune`.
        images: See :func:`prune`.
        labels: See :func:`prune`.
        signal: See :func:`prune`.
        strategies: Names in ``conf/strategy``, or ``Strategy`` objects; one or several. None is all of
            ``conf/strategy``.
        ranges: See :func:`prune`.
        pattern: See :func:`prune`.
        reconstruct: See :func:`prune`.
        loss: See :func:`prune`.

    Returns:
        An iterator over names of strategies and results.

    Raises:
        MmpError: as :func:`prune`, before the first result.

    Example:
        >>> import mmp, torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> images, labels = torch.randn(64, 3, 8, 8), torch.randint(10, (64,))
        >>> for name, result in mmp.prune_all(model, images=images, labels=labels, signal="product"):
        ...     print(f"{name:17} {result.sparsity:.3f}")
        aggressive        0.472
        balanced          0.236
        classifier_heavy  0.465
        conservative      0.000
        feature_heavy     0.236
        p30               0.142
        p50               0.236
        p70               0.330
        p90               0.425
        proportional      0.470
    """
    settings = _Settings.of(ranges, pattern, reconstruct, images, loss)
    scorer, limit = _scorer("signal", signal), load_budget(budget)
    chosen = _strategies(strategies)
    dense = _Dense.of(model, images, labels, settings, {f"signal={scorer.name}": scorer.needs})
    seen, structure = dense.observations(), dense.channels()
    plan = make_plan(model, settings.table, chosen, limit, seen, pattern=settings.pattern, structure=structure)
    plan.require_pattern()
    return dense.results(plan, scorer.name, dense.signal_scores(scorer, structure))


def _prune_by(
    baseline: Criterion | str,
    model: nn.Module,
    budget: Budget | float | None,
    images: Images | None,
    labels: Labels | None,
    strategy: Strategy | str,
    settings: _Settings,
) -> Iterator[tuple[str, PruneResult]]:
    """Prune by a criterion, to the budget or to as many weights as the strategy prunes."""
    ranking, chosen, limit = _scorer("criterion", baseline), _strategy(strategy), load_budget(budget)
    pattern = settings.pattern
    if isinstance(pattern, Channels):
        raise MmpError(no_channels(f"criterion={ranking.name}", pattern))
    target = limit.target(chosen.name, Sizes.of(model, checked_layers(model)))
    pruned = None if target is None else weights_to_prune(target)
    if pruned is not None:
        settings = settings.without_ranges()
    dense = _Dense.of(model, images, labels, settings, {f"criterion={ranking.name}": ranking.needs})
    plan = make_plan(model, settings.table, [chosen], None, dense.observations(), pattern=settings.pattern)
    pruned = plan.pruned[chosen.name] if pruned is None else pruned
    scores = dense.scores(ranking, settings.observed.grasp_temperature)
    sparsities = ranked_sparsities(ranking, plan.layers, scores, pruned, pattern)
    by_criterion = replace(
        plan,
        ranges={layer.name: UNLIMITED for layer in plan.layers},
        sparsities={ranking.name: sparsities},
        table=f"budget {limit}" if target else f"as many weights as strategy {chosen.name}, {plan.table}",
        rules=None,
    )
    return dense.results(by_criterion, None, scores, ranking)


@dataclass(frozen=True)
class _Settings:
    """The settings that all strategies of a call share.

    Attributes:
        table: The ranges that layers may have.
        observed: The criteria and targets from which ranges are observed, if the table is an observed one.
        pattern: The structure that masks satisfy.
        solving: Whether and how kept weights are re-solved.
        loss: The loss used in training.
    """

    table: RangeTable
    observed: RangesConfig
    pattern: Pattern | Channels
    solving: ReconstructConfig
    loss: Loss

    @classmethod
    def of(
        cls,
        ranges: RangeTable | str | None,
        pattern: Pattern | Channels | str,
        reconstruct: str | None,
        images: Images | None,
        loss: Loss,
    ) -> _Settings:
        """Create the settings from names in ``conf/``."""
        pattern = parse(str(pattern))
        if ranges is None:
            ranges = "channels" if isinstance(pattern, Channels) else "generic"
        if isinstance(ranges, RangeTable):
            table, observed = ranges, RangesConfig(ranges.name)
        else:
            observed = read_choice("ranges", str(ranges), read_ranges)
            table = build_range_table(observed)
        if reconstruct is None:
            reconstruct = "none" if images is None else "least_squares"
        if not isinstance(reconstruct, str):
            raise MmpError(f"reconstruct={reconstruct!r}: must be one of the words {', '.join(RECONSTRUCTIONS)}")
        if table.observed and isinstance(pattern, Channels):
            raise MmpError(no_channels(f"ranges={table.name}", pattern))
        if isinstance(pattern, Channels) and images is None:
            raise MmpError(f"pattern={pattern}: the channels that go together are found with an image; pass images")
        solving = read_choice("reconstruct", reconstruct, read_reconstruct)
        return cls(table, observed, pattern, solving, loss)

    def without_ranges(self) -> _Settings:
        """Return the settings of a criterion with a budget: it uses no ranges, so its table only has to fit any model.

        The criteria's temperature stays.
        """
        return replace(self, table=load_ranges("generic"))

    @property
    def needs(self) -> dict[str, frozenset[str]]:
        """The statistics that observed ranges and re-solving need, by the setting."""
        needs = {}
        if self.table.observed:
            criteria = map(criterion_of, self.observed.criteria)
            needs[f"ranges={self.table.name}"] = frozenset[str]().union(*(one.needs for one in criteria))
        if self.solving.name != "none":  # it reads the same images and no labels
            needs[f"reconstruct={self.solving.name}"] = frozenset({"input_covariance"})
        return needs


@dataclass(frozen=True)
class _Dense:
    """The trained model, with the images that it is scored and re-solved on."""

    model: nn.Module
    layers: tuple[Layer, ...]
    data: CalibrationImages
    settings: _Settings

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: Images | None,
        labels: Labels | None,
        settings: _Settings,
        needs: Mapping[str, frozenset[str]],
    ) -> _Dense:
        """Check the model, and the images for all statistics that will be collected."""
        layers = checked_layers(model, runs=images is not None)
        if isinstance(settings.pattern, Pattern):
            settings.pattern.fitting(layers)  # raises if there are none
        data = CalibrationImages.read(model, images, labels, {**needs, **settings.needs}, settings.loss)
        _divided(data, settings.solving)  # raises if there are too few
        return cls(model, layers, data, settings)

    def channels(self) -> WholeChannels | None:
        """Return the groups of channels of the model, None if they are not what is pruned."""
        if not isinstance(self.settings.pattern, Channels):
            return None
        return WholeChannels.of(
            self.model, self.data.first(1)[0], self.settings.pattern, dimensions=self.settings.table.dimensions
        )

    def observations(self) -> list[dict[str, float]] | None:
        """Return the sparsity of every layer under each criterion at each target, if ranges are observed."""
        if not self.settings.table.observed:
            return None
        by, loss = self.settings.observed, self.settings.loss
        criteria = map(criterion_of, by.criteria)
        found = observe(self.model, self.layers, self.data.pairs, loss, criteria, by.targets, by.grasp_temperature)
        return list(found.values())

    def scores(self, scorer: Scorer, temperature: float = 1.0, normalised: bool = False) -> dict[str, Tensor]:
        """Return the score of every weight, by layer."""
        weights, loss = prunable_parameters(self.model, self.layers), self.settings.loss
        statistics = collect(self.model, weights, self.data.pairs, loss, scorer.needs, temperature)
        return score(scorer, weights, statistics, normalised)

    def signal_scores(self, signal: Scorer, structure: WholeChannels | None) -> dict[str, Tensor]:
        """Return a signal's score of every weight, by layer, or of every set of channels, by group."""
        if structure is None:
            return self.scores(signal, normalised=True)
        weights, loss = prunable_parameters(self.model, self.layers), self.settings.loss
        return structure.score(signal, weights, collect(self.model, weights, self.data.pairs, loss, signal.needs))

    def results(
        self, plan: Plan, signal: str | None, scores: Mapping[str, Tensor], baseline: Criterion | None = None
    ) -> Iterator[tuple[str, PruneResult]]:
        """Make all masks now, and yield the model under each of them later."""
        grid = plan.structure.grid(scores, plan.sparsities)
        for strategy, masks in grid.items():
            warn_of_emptied(masks, strategy, baseline)
        return self._under(grid, plan, signal)

    def _under(self, grid: Mapping[str, Masks], plan: Plan, signal: str | None) -> Iterator[tuple[str, PruneResult]]:
        """Yield a copy under the masks of each strategy, its kept weights re-solved if that is set."""
        solving, targets = self.settings.solving, None
        tuned, held = _divided(self.data, solving)
        images = stacked(tuned, solving.images) if tuned else self.data.first(solving.images)
        few = self.data.images[0][:MOST_IMAGES].clone() if self.data.images else None  # without the memory of the batch
        for strategy, masks in grid.items():
            pruned, reports, joint = self._copy(), [], None
            if solving.name == "none":
                MaskEnforcer(prunable_parameters(pruned, self.layers)).set(masks)
            else:
                if targets is None:  # the outputs of the dense layers, which all strategies share
                    targets = dense_targets(self.model, masks, images, solving.cache_megabytes * MEGABYTE)
                reports = reconstruct_layers(
                    pruned, masks, images, solving.ridge, self.model, targets, solving.rows_per_column
                )
            if tuned:
                joint = reconstruct_jointly(
                    pruned, masks, singly(tuned), self.model, Tuning.of(solving.tuning), singly(held)
                )
            yield strategy, PruneResult(pruned, masks, plan, strategy, signal, tuple(reports), few, joint)

    def _copy(self) -> nn.Module:
        """Return a copy in the same mode, without tensors that the model keeps from its last evaluation."""
        with evaluating(self.model):
            copied = copy.deepcopy(self.model)
        for module, original in zip(copied.modules(), self.model.modules(), strict=True):
            module.training = original.training
        return copied


def _divided(data: CalibrationImages, solving: ReconstructConfig) -> tuple[list[Tensor], list[Tensor]]:
    """Return the single images that a joint tuning uses, and those that it holds out; empty without one."""
    if solving.name != JOINT:
        return [], []
    return divided([*chain.from_iterable(data.first(solving.tuning.images))])


def _scorer(group: str, choice: Any) -> Any:
    """Return a signal or a criterion: an object unchanged, or the one that a file in ``conf/`` describes."""
    if isinstance(choice, str):
        return instantiate({str(key): value for key, value in choose(group, choice).items() if key != "name"}, group)
    if isinstance(choice, type) or not (hasattr(choice, "needs") and hasattr(choice, "score")):
        raise MmpError(f"{group}={choice!r}: must be a name in conf/{group}, or an object with name, needs and score")
    return choice


def _strategy(choice: Strategy | str) -> Strategy:
    return choice if isinstance(choice, Strategy) else load_strategy(str(choice))


def _strategies(choices: Iterable[Strategy | str] | Strategy | str | None) -> list[Strategy]:
    if choices is None:
        return load_strategies()
    return [_strategy(choice) for choice in ([choices] if isinstance(choices, Strategy | str) else choices)]
