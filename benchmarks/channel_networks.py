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
from mmp.pruning.channels.masks import MULTIPLE
from mmp.pruning.channels.removal import Removal
from mmp.pruning.channels.shrink import remove
from mmp.pruning.channels.unread import unread_sets

CLASSES = 1000
STEPS = 12  # of the bisection of a sparsity


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

    Args:
        network: The network. It is not changed.
        groups: Its groups of channels.
        images: A batch (B, C, H, W).
        multiple: Layers keep multiples of this number of channels.
    """

    def __init__(
        self, network: nn.Module, groups: Sequence[ChannelGroup], images: Tensor, multiple: int = MULTIPLE
    ) -> None:
        self.network, self.groups, self.images, self.multiple = network, groups, images, multiple
        weights = prunable_parameters(network, prunable_layers(network))
        self._scores = {key: weight.detach().abs() for key, weight in weights.items()}

    def at(self, sparsities: Sequence[float]) -> tuple[nn.Module, nn.Module, Removal]:
        """Return the smaller network, the masked network and the removal, by the sparsity of each group."""
        wanted = dict(zip((group.name for group in self.groups), sparsities, strict=True))
        masks = channel_masks(self.groups, self._scores, wanted, self.multiple)
        masked = copy.deepcopy(self.network)
        enforcer = MaskEnforcer(prunable_parameters(masked, prunable_layers(masked)))
        enforcer.set(masks)
        unread = {group: unread_sets(masked, group) for group in self.groups}
        chosen = {group: sets for group, sets in unread.items() if len(sets)}
        return masked, *remove(masked, chosen, self.images)

    def without(self, gone: float) -> tuple[nn.Module, nn.Module, Removal]:
        """Return the networks and the removal of a share of the network's parameters.

        All groups have the lowest common sparsity that removes the share. The groups that are nearest to the output
        then get back what is too much, so that the share is met within a multiple of channels of one group.
        """
        most = (1 - gone) * parameters_of(self.network)
        count = len(self.groups)
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._left([middle] * count) <= most else (middle, high)
        first, last = 0, count  # of the groups with the higher sparsity
        while last - first > 1:
            middle_group = (first + last) // 2
            enough = self._left(self._mixed(low, high, middle_group)) <= most
            first, last = (first, middle_group) if enough else (middle_group, last)
        return self.at(self._mixed(low, high, last))

    def _mixed(self, low: float, high: float, count: int) -> list[float]:
        return [high] * count + [low] * (len(self.groups) - count)

    def _left(self, sparsities: Sequence[float]) -> int:
        return parameters_of(self.at(sparsities)[1])
