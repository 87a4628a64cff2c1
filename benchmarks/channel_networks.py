"""Networks for the benchmarks of whole channels: timm models with random weights, and what is left of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.flop_counter import FlopCounterMode

from mmp import ChannelGroup, MaskEnforcer, channel_masks, prunable_layers, prunable_parameters
from mmp.pruning.channels.costs import Costs, positions_of
from mmp.pruning.channels.masks import sets_per_step
from mmp.pruning.channels.removal import Removal
from mmp.pruning.channels.roles import group_layers
from mmp.pruning.channels.shrink import remove
from mmp.pruning.channels.unread import removable
from mmp.pruning.patterns import MULTIPLE

CLASSES = 1000
STEPS = 12  # of the bisection of a share
SHARED, EARLY, MOST = 0.25, 1.5, 0.9  # factors of a share, and the largest share of a group


def network_of(name: str, images: Tensor) -> nn.Module:
    """Return a timm model with random weights, in eval mode.

    Scales of norms and of residual branches are random, too: a scale of zero or 1e-6, as some models start with, would
    hide an error in the branch. Batch norms have the statistics of the images.
    """
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=CLASSES)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.dim() <= 1:
                parameter.uniform_(0.5, 1.5)
    update_bn([images], network)
    return network.eval()


def parameters_of(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds_of(network: nn.Module, images: Tensor) -> int:
    """Return the number of multiply-adds of matrix products and convolutions for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images[:1])
    return counter.get_total_flops() // 2


@torch.no_grad()
def difference_of(smaller: nn.Module, masked: nn.Module, images: Tensor) -> float:
    """Return the largest difference of two networks' logits, divided by the largest logit of the second."""
    expected = masked(images)
    return float((smaller(images) - expected).abs().max() / expected.abs().max())


class Shrinker:
    """Removes whole channels of a network, those with the lowest magnitudes.

    Every group loses the same share of its channels, with two exceptions. Widths which several blocks share lose
    `SHARED` of it: in a block of a RegNet, the grouped convolution takes most of the time, and only the block's own
    width narrows it. Groups before the last stage lose `EARLY` times as much, but not more than `MOST` of their
    channels: they have few parameters, but compute at many positions. The widths are then rounded down to multiples.

    Args:
        network: The network. It is not changed.
        groups: Its groups of channels.
        images: A batch (B, C, H, W).
        multiple: Layers keep multiples of this number of channels. A narrower layer keeps all.
    """

    def __init__(
        self, network: nn.Module, groups: Sequence[ChannelGroup], images: Tensor, multiple: int = MULTIPLE
    ) -> None:
        self.network, self.groups, self.images, self.multiple = network, groups, images, multiple
        weights = prunable_parameters(network, prunable_layers(network))
        self._scores = {key: weight.detach().abs() for key, weight in weights.items()}
        self._steps = [min(sets_per_step(group, multiple), len(group)) for group in groups]
        positions = positions_of(network, images[:1])
        records = group_layers(groups, prunable_layers(network), positions)
        most = [max(positions.get(part.name, 0) for part in group.channels) for group in groups]
        last = min((count for count in most if count > 1), default=1)  # a gate and a head after the pool have one
        self._factors = [
            SHARED if record.role == "stage_width" else EARLY if count > last else 1.0
            for record, count in zip(records, most, strict=True)
        ]
        self._left = Costs.of(network, groups, {}).parameters_left

    def with_share(self, share: float) -> tuple[nn.Module, nn.Module, Removal]:
        """Remove the same share of the channels of every group, and return the same as :meth:`without`."""
        return self._removed(self._pruned(share, [1.0] * len(self.groups)))

    def without(self, gone: float) -> tuple[nn.Module, nn.Module, Removal]:
        """Remove a share of the network's parameters.

        All groups lose the same share of their sets: the lowest at which the network has few enough parameters. The
        groups nearest to the output then lose one step of sets less, as many groups as the parameters allow.

        Returns:
            The masked network, the smaller network, and what was removed.
        """
        most = (1 - gone) * parameters_of(self.network)
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._left(self._pruned(middle, self._factors)) <= most else (middle, high)
        fewer, more = self._pruned(low, self._factors), self._pruned(high, self._factors)
        first, last = 0, len(more)  # last: the number of groups that lose the larger share
        while last - first > 1:
            half = (first + last) // 2
            first, last = (first, half) if self._left(more[:half] + fewer[half:]) <= most else (half, last)
        return self._removed(more[:last] + fewer[last:])

    def _pruned(self, share: float, factors: Sequence[float]) -> list[int]:
        """Return the number of sets that each group loses."""
        counts = []
        for group, step, factor in zip(self.groups, self._steps, factors, strict=True):
            wanted = int(min(factor * share, max(share, MOST)) * len(group))
            kept = max(step, (len(group) - wanted) // step * step) if wanted else len(group)
            counts.append(len(group) - kept)
        return counts

    def _removed(self, counts: Sequence[int]) -> tuple[nn.Module, nn.Module, Removal]:
        pairs = zip(self.groups, counts, strict=True)
        sparsities = {group.name: count / len(group) for group, count in pairs}
        masks = channel_masks(self.groups, self._scores, sparsities, self.multiple)
        masked = copy.deepcopy(self.network)
        enforcer = MaskEnforcer(prunable_parameters(masked, prunable_layers(masked)))
        enforcer.set(masks)
        return masked, *remove(masked, removable(masked, self.groups), self.images)
