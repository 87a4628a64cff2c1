"""Groups of channels whose removal has been tried: some networks do not run without channels that look removable."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn

from mmp.pruning.channels.coupling import channel_groups
from mmp.pruning.channels.group import ChannelGroup
from mmp.pruning.channels.removal import tensors_of
from mmp.pruning.channels.shrink import remove
from mmp.pruning.layers.eval_mode import evaluating

log = logging.getLogger(__name__)


@torch.no_grad()
def confirmed_groups(network: nn.Module, image: Tensor) -> list[ChannelGroup]:
    """Return the groups of :func:`mmp.pruning.channels.coupling.channel_groups` that can be removed for certain.

    In a copy of the network, nothing reads half of the sets of each group. Groups are left out, with a warning, if the
    network without these sets does not run or computes something else: for instance where the forward pass splits
    channels by numbers of its own.

    Args:
        network: Any network. It is not changed.
        image: One image of the network's real size, (1, C, H, W). Only its shape and data type are used.

    Raises:
        MmpError: if the network does not run on the image.
    """
    with evaluating(network):
        groups, unread = channel_groups(network, image), copy.deepcopy(network)
    tensors = tensors_of(unread)
    chosen = {group: torch.arange(len(group) // 2) for group in groups}
    for group, sets in chosen.items():
        for part in group.readers:
            weight, columns = tensors[part.name], group.channels[part][sets].flatten()
            weight.index_fill_(1, columns.to(weight.device), 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = torch.randn(image.shape).to(next(unread.parameters()).device, image.dtype)
    _, removal = remove(unread, chosen, noise)
    for name, reason in removal.kept.items():
        log.warning("%s: this group of channels is not pruned, since half of it cannot be removed: %s", name, reason)
    return [group for group in groups if group.name not in removal.kept]
