"""Criteria: complete single-method pruners, each a score and a rule for the sparsity of every layer.

They are the baselines of the method and the observers of its phase 1. Most rank all weights of the network together;
``uniform`` and ``erk`` set every layer's sparsity first. A new criterion is a class and a YAML file in
``conf/criterion``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmp.errors import MmpError, nearest
from mmp.pruning.budgets import Shift, Target, with_pattern
from mmp.pruning.calibration_statistics import Batches, Loss, collect
from mmp.pruning.counts import pruned_count, sparsity_of
from mmp.pruning.layers.layer import Layer, count_weights
from mmp.pruning.layers.prunable import prunable_parameters
from mmp.pruning.masks import Masks
from mmp.pruning.patterns import Pattern
from mmp.pruning.ranges import Range
from mmp.pruning.signals import Fisher, Magnitude, score
from mmp.pruning.topk import keep_highest

UNLIMITED = Range(0.0, 1.0)  # the range of every layer where a criterion allocates


@dataclass(frozen=True)
class Criterion:
    """Base of all criteria, a ``mmp.pruning.signals.Scorer`` that also allocates the sparsity.

    Attributes:
        name: The criterion's name on the command line and in reports.
        needs: The statistics that its score is computed from (``mmp.pruning.calibration_statistics.STATISTICS``).
        min_density: Share of its weights that every layer keeps at least. At 98 % sparsity SNIP, for one, prunes whole
            layers, which disconnects the network. 0, the published behaviour, sets no minimum.

    Raises:
        MmpError: if ``min_density`` is outside [0, 1).
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    min_density: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_density < 1.0:
            raise MmpError(f"criterion.min_density={self.min_density}: must be a share in [0, 1)")

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return importances of the weight's shape, comparable between layers; higher is more important.

        Args:
            weight: The weight tensor.
            statistics: The statistics named in ``needs``, for this weight.
        """
        raise NotImplementedError

    def allocate(self, layers: Sequence[Layer], scores: Mapping[str, Tensor], pruned: int) -> dict[str, float]:
        """Return every layer's sparsity, by name, for which masks prune exactly ``pruned`` weights in all.

        Unless a criterion overrides this, these are the lowest-scored weights of the whole network.

        Args:
            layers: The model's prunable layers.
            scores: One tensor per layer, by name.
            pruned: Number of weights to prune.

        Raises:
            MmpError: if ``min_density`` leaves fewer weights than that.
        """
        ordered = {layer.name: scores[layer.name] for layer in layers}
        masks = global_masks(ordered, pruned, self.min_density)
        return {name: sparsity_of(count, masks[name].numel()) for name, count in masks.pruned.items()}


@dataclass(frozen=True)
class Mag(Criterion):
    """Global magnitude: |w|, ranked over all layers together (Han et al. 2015, arXiv 1506.02626)."""

    name: ClassVar[str] = "mag"

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return |w|."""
        return Magnitude().score(weight, statistics)


@dataclass(frozen=True)
class Divided(Mag):
    """Magnitude within each layer; the criterion sets every layer's sparsity without looking at the scores."""

    def __post_init__(self) -> None:
        if self.min_density:
            raise MmpError(
                f"criterion.min_density={self.min_density}: criterion={self.name} sets each layer's sparsity itself "
                "and ignores a minimum density; leave it at 0"
            )


@dataclass(frozen=True)
class Uniform(Divided):
    """Magnitude within each layer, all layers equally sparse (Zhu and Gupta 2017, arXiv 1710.01878)."""

    name: ClassVar[str] = "uniform"

    def allocate(self, layers: Sequence[Layer], scores: Mapping[str, Tensor], pruned: int) -> dict[str, float]:
        """Return the same sparsity for every layer, to within one weight; see :meth:`Criterion.allocate`."""
        same = pruned / count_weights(layers)
        return Shift(layers, ceiling=1.0).whole_weights({layer.name: same for layer in layers})


@dataclass(frozen=True)
class Erk(Divided):
    """Magnitude within each layer, with Erdos-Renyi-Kernel densities (RigL, Evci et al. 2020, arXiv 1911.11134).

    The density of a layer is proportional to the sum of its weight's dimensions divided by their product, so large
    layers become sparser. A layer whose density would exceed 1 stays dense.
    """

    name: ClassVar[str] = "erk"

    def allocate(self, layers: Sequence[Layer], scores: Mapping[str, Tensor], pruned: int) -> dict[str, float]:
        """Return 1 - density of every layer; see :meth:`Criterion.allocate`."""
        kept = count_weights(layers) - pruned
        raw = {layer.name: sum(layer.shape) / math.prod(layer.shape) for layer in layers}
        dense: set[str] = set()
        while True:
            left = [layer for layer in layers if layer.name not in dense]
            room = kept - count_weights(layer for layer in layers if layer.name in dense)
            scale = room / sum(raw[layer.name] * layer.size for layer in left) if left else 0.0
            full = {layer.name for layer in left if scale * raw[layer.name] > 1.0}
            if not full:
                break
            dense |= full
        sparsities = {n: 0.0 if n in dense else 1.0 - scale * value for n, value in raw.items()}
        return Shift(layers, ceiling=1.0).whole_weights(sparsities)


@dataclass(frozen=True)
class Lamp(Criterion):
    """Layer-adaptive magnitude (LAMP, Lee et al. 2021, arXiv 2010.07611), ranked over all layers together.

    The score is w^2 divided by the sum of all squares in the layer that are at least as large. The largest weight of
    each layer scores 1, so no layer loses all its weights.
    """

    name: ClassVar[str] = "lamp"

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return w_u^2 / sum of w_v^2 over all v >= u, with the weights in ascending order of |w|."""
        squares, order = weight.square().double().flatten().sort(stable=True)
        remaining = squares.flip(0).cumsum(0).flip(0)
        ratio = torch.where(remaining > 0, squares / remaining.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        return torch.empty_like(ratio).scatter_(0, order, ratio).view(weight.shape)


@dataclass(frozen=True)
class Random(Criterion):
    """Random scores: the baseline that every other criterion must beat.

    The weights seed the generator, so the same model gives the same masks, and layers of the same shape get different
    ones.
    """

    name: ClassVar[str] = "random"

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return uniform random numbers in [0, 1)."""
        seed = zlib.crc32(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(weight.shape, generator=generator, dtype=torch.float64, device="cpu")
        return noise.to(weight.device)


@dataclass(frozen=True)
class Snip(Criterion):
    """Connection sensitivity |w * dL/dw|, g = dL/dw over all samples (SNIP, Lee et al. 2019, arXiv 1810.02340).

    Unlike in the signal ``product``, the gradient keeps its sign when it is averaged, so samples with opposite
    gradients cancel. The paper divides by the sum over all weights, which changes no ranking. SNIP was published for
    networks at initialisation; here it scores trained ones, unchanged.
    """

    name: ClassVar[str] = "snip"
    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return |w * g|."""
        return (weight * statistics["gradient"]).abs()


@dataclass(frozen=True)
class Grasp(Criterion):
    """Gradient signal preservation (GraSP, Wang et al. 2020, arXiv 2002.07376).

    The paper scores the removal of a weight by -w * (H g) and removes the highest scores first; the importance is
    therefore w * (H g), of either sign. GraSP was published for networks at initialisation, like SNIP.
    """

    name: ClassVar[str] = "grasp"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return w * (H g)."""
        return weight * statistics["hessian_gradient"]


@dataclass(frozen=True)
class Taylor(Criterion):
    """First-order Taylor expansion: mean of (g * w)^2 over batches (Molchanov et al. 2019, arXiv 1906.10771, eq. 8).

    Because of the square, batches with opposite gradients do not cancel, as they do in SNIP.
    """

    name: ClassVar[str] = "taylor"
    needs: ClassVar[frozenset[str]] = frozenset({"squared_batch_gradient"})

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return w^2 times the mean over batches of g^2."""
        return weight.square() * statistics["squared_batch_gradient"]


@dataclass(frozen=True)
class GlobalFisher(Criterion):
    """The signal ``fisher``, w^2 E[g^2] over single images, ranked globally (Theis et al. 2018, arXiv 1801.05787)."""

    name: ClassVar[str] = "fisher"
    needs: ClassVar[frozenset[str]] = Fisher().needs

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return w^2 times the mean squared gradient."""
        return Fisher().score(weight, statistics)


@dataclass(frozen=True)
class BlockFisher(GlobalFisher):
    """The criterion ``fisher``, averaged over square blocks of the weight matrix, which are pruned as a whole.

    An approximation of LPViT (Xu et al. 2024, arXiv 2407.02068) with unstructured masks; docs/baselines.md lists the
    differences. To prune an exact number of weights, the last block may be pruned in part.

    Attributes:
        size: Rows and columns of a block of the weight as a matrix (outputs, inputs); blocks at the edges are smaller.

    Raises:
        MmpError: if the size is less than 1.
    """

    name: ClassVar[str] = "block_fisher"
    size: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise MmpError(f"criterion.size={self.size}: must be at least 1")

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return the mean Fisher score of each weight's block."""
        scores = super().score(weight, statistics).flatten(1)
        means = F.avg_pool2d(scores.double()[None], self.size, ceil_mode=True, count_include_pad=False)[0]
        spread = means.repeat_interleave(self.size, 0).repeat_interleave(self.size, 1)
        return spread[: scores.shape[0], : scores.shape[1]].reshape(weight.shape)


@dataclass(frozen=True)
class QuantizedTaylor(Criterion):
    """|q(w) * g|: the first-order change of the loss when a quantized weight is removed; q rounds to an integer grid.

    Weights that round to zero score 0. An approximation of GETA (Qu et al. 2025, arXiv 2502.16638) with unstructured
    masks; docs/baselines.md lists the differences.

    Attributes:
        bits: Width of the grid, symmetric per output channel and scaled to the channel's largest weight.

    Raises:
        MmpError: if the width is not from 2 to 16.
    """

    name: ClassVar[str] = "quantized_taylor"
    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})
    bits: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 16:
            raise MmpError(f"criterion.bits={self.bits}: must be from 2 to 16")

    def score(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return |q(w) * g|."""
        most = 2 ** (self.bits - 1) - 1
        largest = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny)
        scale = (largest / most).view(-1, *[1] * (weight.dim() - 1))
        return ((weight / scale).round() * scale * statistics["gradient"]).abs()


CRITERIA: dict[str, type[Criterion]] = {
    kind.name: kind
    for kind in (Mag, Uniform, Erk, Lamp, Random, Snip, Grasp, Taylor, GlobalFisher, BlockFisher, QuantizedTaylor)
}


def criterion(name: str) -> Criterion:
    """Return a criterion by name, with its published settings.

    Raises:
        MmpError: on an unknown name; the message suggests the nearest.
    """
    if name not in CRITERIA:
        raise MmpError(f"unknown criterion {name!r}; {nearest(name, CRITERIA)}")
    return CRITERIA[name]()


def weights_to_prune(target: Target) -> int:
    """Return how many weights a criterion prunes to meet a budget, which no range limits.

    Raises:
        MmpError: if the budget is out of reach, such as a size above the dense model's.
    """
    target.require_within(0.0, 1.0, "a criterion can prune")
    return round(target.sparsity * target.sizes.weights)


def ranked_sparsities(
    ranking: Criterion, layers: Sequence[Layer], scores: Mapping[str, Tensor], pruned: int, pattern: Pattern
) -> dict[str, float]:
    """Return every layer's sparsity, by name, as a criterion allocates it and the pattern permits.

    Args:
        ranking: The criterion.
        layers: The model's prunable layers.
        scores: The criterion's score of every weight: one tensor per layer, by name.
        pruned: Number of weights to prune.
        pattern: Pattern of the masks.

    Raises:
        MmpError: if ``min_density`` leaves fewer weights than that, or the pattern alone prunes more.
    """
    return with_pattern(layers, ranking.allocate(layers, scores, pruned), pattern)


def observe(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Batches,
    loss: Loss,
    criteria: Iterable[Criterion],
    targets: Sequence[float],
    temperature: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Return every layer's sparsity under each criterion at each global target, from which ranges are made.

    Args:
        model: The trained dense model.
        layers: Its prunable layers.
        batches: (images, labels) pairs on the model's device.
        loss: The loss used in training.
        criteria: The criteria.
        targets: Global sparsities in [0, 1].
        temperature: Divisor of the model's outputs for GraSP; see
            :func:`mmp.pruning.calibration_statistics.collect`.

    Returns:
        Layer name to sparsity, under a key such as ``snip@0.8`` for each criterion and target.
    """
    scorers = list(criteria)
    parameters = prunable_parameters(model, layers)
    total = count_weights(layers)
    needs = frozenset[str]().union(*(scorer.needs for scorer in scorers))
    statistics = collect(model, parameters, batches, loss, needs, temperature)
    observed = {}
    for scorer in scorers:
        scores = score(scorer, parameters, statistics)
        for target in targets:
            observed[f"{scorer.name}@{target}"] = scorer.allocate(layers, scores, pruned_count(target, total))
    return observed


def global_masks(scores: Mapping[str, Tensor], pruned: int, min_density: float = 0.0) -> Masks:
    """Return masks that prune exactly the ``pruned`` lowest scores over all layers together.

    Of equal scores, earlier layers and lower flat indices are pruned first, so within each layer the lowest
    scores are pruned, as in :func:`mmp.pruning.masks.make_masks`.

    Args:
        scores: One tensor per layer, by name, comparable between layers.
        pruned: Number of weights to prune.
        min_density: Share of its weights, rounded up to whole weights, that every layer keeps at least.

    Raises:
        MmpError: if ``min_density`` leaves fewer weights than ``pruned``.
    """
    flat = {name: value.detach().flatten() for name, value in scores.items()}
    # Weights that may be pruned: all but the highest scores of each layer.
    free = {n: ~keep_highest(v, pruned_count(1.0 - min_density, v.numel())) for n, v in flat.items()}
    everything = torch.cat([value[free[name]] for name, value in flat.items()])
    if pruned > everything.numel():
        total = sum(value.numel() for value in flat.values())
        raise MmpError(
            f"criterion.min_density={min_density:g} leaves {everything.numel()} of {total} weights to prune, but the "
            f"budget takes {pruned}; lower one of the two"
        )
    keep = keep_highest(everything, pruned).split([int(part.count_nonzero()) for part in free.values()])
    masks = {}
    for (name, part), kept in zip(free.items(), keep, strict=True):
        mask = torch.ones_like(part)
        mask[part] = kept
        masks[name] = mask.view(scores[name].shape)
    return Masks(masks)
