"""A pruned model with its masks, its plan and a report on each layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.pruning.calibration_images import CalibrationImages, Images
from mmp.pruning.channels.shrink import shrink
from mmp.pruning.counts import pruned_count
from mmp.pruning.masks import Masks
from mmp.pruning.patterns import UNSTRUCTURED, Channels
from mmp.pruning.plan import Plan
from mmp.pruning.plan_text import aligned
from mmp.pruning.reconstruction.joint_report import JointReport
from mmp.pruning.reconstruction.layer_report import LayerReport
from mmp.pruning.reconstruction.reconstruct import summary_of
from mmp.pruning.sizes import MEGABYTE

MOST_IMAGES = 16  # that a result keeps, for the check of a smaller network


@dataclass(frozen=True, eq=False, repr=False)
class PruneResult:
    """A pruned model with a report on each of its layers. ``print(result)`` shows a table of the layers.

    Attributes:
        model: The pruned copy, on the device and in the mode of the original. Pruned weights are exactly 0.0.
        masks: A bool tensor for each prunable weight, True where the weight is kept.
        plan: Layers, ranges and sparsities, for all strategies of the call.
        strategy: Name of the strategy that set the sparsities, or of the criterion that did so in its place.
        signal: Name of the signal that scored the weights; None if the criterion scored them.
        reports: For each layer its output error before and after re-solving, in forward order; empty without
            re-solving.
        images: The first images of the call, at most 16, (B, C, H, W); None if it had none.
        joint: The report on the joint tuning, with ``reconstruct="joint"``.
    """

    model: nn.Module
    masks: Masks
    plan: Plan
    strategy: str
    signal: str | None
    reports: tuple[LayerReport, ...] = ()
    images: Tensor | None = None
    joint: JointReport | None = None

    def smaller(self, images: Images | None = None) -> nn.Module:
        """Return a copy of the model without the channels that nothing reads.

        It has the same logits, up to 1e-5 of the largest. ``mmp.shrink(result.model, result.images)`` returns the same
        network and what was removed.

        Args:
            images: A few images for the experiments and the check, of the size and normalisation of the training. None
                takes those of the call.

        Returns:
            The smaller network, in eval mode.

        Raises:
            MmpError: if there are no images, neither here nor in the call, or if the model does not accept them.

        Example:
            >>> import mmp, torch
            >>> from torch import nn
            >>> _ = torch.manual_seed(0)
            >>> head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
            >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), *head)
            >>> result = mmp.prune(model, budget=0.5, images=torch.randn(64, 3, 8, 8), pattern="channels")
            >>> result.smaller()[2]
            Conv2d(48, 32, kernel_size=(3, 3), stride=(1, 1))
        """
        given = self.images if images is None else images
        if given is None:
            raise MmpError("smaller: the call of mmp.prune had no images; pass a few, as smaller(images)")
        (batch, *_) = CalibrationImages.read(self.model, given).images
        network, _ = shrink(self.model, batch[:MOST_IMAGES])
        return network

    @property
    def sparsity(self) -> float:
        """Pruned weights / all prunable weights, in [0, 1]."""
        return self.masks.sparsity

    @property
    def method(self) -> str:
        """The signal and the strategy, or the criterion, in words."""
        by_strategy = f"signal {self.signal}, strategy {self.strategy}"
        return f"criterion {self.strategy}" if self.signal is None else by_strategy

    def __repr__(self) -> str:
        return f"PruneResult({self.plan.model}, {self.method}, sparsity {self.sparsity:.4f})"

    def __str__(self) -> str:
        """Return a table of the layers, and totals below it."""
        title = f"{self.plan.model}: {', '.join(filter(None, (self.method, self.plan.table)))}"
        columns = self._columns()
        table = aligned([*columns], [*zip(*columns.values(), strict=True)])
        return "\n".join([title, table, *self._totals()])

    def _columns(self) -> dict[str, list[str]]:
        """Return the cells of the table, a row for each layer, by the headings."""
        plan, layers, pruned = self.plan, self.plan.layers, self.masks.pruned
        if isinstance(plan.pattern, Channels):
            return self._columns_of_groups()
        ranges = [plan.ranges[layer.name] for layer in layers]
        columns = {
            "layer": [layer.name for layer in layers],
            "role": [layer.role for layer in layers],
            "range (%)": [f"{_percent(allowed.lo)} - {_percent(allowed.hi)}" for allowed in ranges],
            "sparsity (%)": [_percent(pruned[layer.name] / layer.size) for layer in layers],
            "pruned": [f"{pruned[layer.name]:,}" for layer in layers],
            "weights": [f"{layer.size:,}" for layer in layers],
        }
        if plan.pattern != UNSTRUCTURED:
            patterned = [plan.patterned(layer, self.strategy) for layer in layers]
            columns["pattern"] = [str(plan.pattern) if holds else "" for holds in patterned]
        if self.reports:
            by_name = {report.name: report for report in self.reports}
            reports = [by_name[layer.name] for layer in layers]
            columns["error (%)"] = [_percent(report.before) for report in reports]
            columns["re-solved (%)"] = [_percent(report.after) for report in reports]
        return columns

    def _columns_of_groups(self) -> dict[str, list[str]]:
        """Return the cells of the table with a row for each group of channels."""
        plan, layers = self.plan, self.plan.layers
        shares = [plan.sparsities[self.strategy][layer.name] for layer in layers]
        ranges = [plan.ranges[layer.name] for layer in layers]
        return {
            "group": [layer.name for layer in layers],
            "role": [layer.role for layer in layers],
            "range (%)": [f"{_percent(allowed.lo)} - {_percent(allowed.hi)}" for allowed in ranges],
            "sparsity (%)": [_percent(share) for share in shares],
            "pruned": [f"{pruned_count(s, x.shape[0]):,}" for s, x in zip(shares, layers, strict=True)],
            "sets": [f"{layer.shape[0]:,}" for layer in layers],
        }

    def _totals(self) -> Iterator[str]:
        plan, whole = self.plan, isinstance(self.plan.pattern, Channels)
        facts = plan.summary(self.strategy)
        of_all = f"{100 * facts['sparsity_all']:.2f} %"
        if whole:
            removed = plan.parameters - facts["parameters_left"]
            yield f"Pruned: {removed:,} of {plan.parameters:,} parameters ({of_all}), in whole channels."
        else:
            shares = f"{100 * self.sparsity:.2f} %, or {of_all} of all {plan.parameters:,} parameters"
            yield f"Pruned: {sum(self.masks.pruned.values()):,} of {self.masks.total:,} prunable weights ({shares})."
        if plan.coverage.missed:
            yield plan.coverage.describe(plan.coverage.missed)
        size, dense = facts["bytes"] / MEGABYTE, plan.sizes.dense / MEGABYTE
        how = "without the pruned channels" if whole else "with one bit per prunable weight for the masks"
        yield f"Size: {size:.3f} MB {how}; dense {dense:.3f} MB."
        if self.reports:
            mean = summary_of(self.reports)
            yield f"Re-solved: {mean['solved']} of {len(self.reports)} layers."
            if mean["error_before"] is not None and not whole:  # the outputs of pruned channels would count as errors
                errors = f"{_percent(mean['error_before'])} % to {_percent(mean['error_after'])} %"
                yield f"Mean output error: from {errors} of the variance of the dense outputs."
        if self.joint:
            yield self.joint.describe()
        for report in self.reports:
            if report.status != "solved":
                yield f"Not re-solved: {report.name}, as {report.status}."


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
