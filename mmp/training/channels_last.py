"""Networks with channels last in memory, which makes convolutions faster."""

from __future__ import annotations

import torch
from torch import nn

from mmp.config.schema import TrainConfig


def put_channels_last(network: nn.Module, config: TrainConfig) -> nn.Module:
    """Put a new network's weights into the order in memory that makes convolutions faster, and return the network.

    A network of the user may fail with it, since ``Tensor.view`` cannot flatten feature maps in this order. Then it
    keeps the usual order.

    Args:
        network: The network; its weights are not changed.
        config: The run's configuration, with the size of the images.
    """
    network.to(memory_format=torch.channels_last)
    if config.model._target_:
        training, size = network.training, config.data.image_size or 1
        try:
            with torch.no_grad():
                network.eval()(torch.zeros(2, config.model.in_chans, size, size))
        except Exception:  # a network of the user can raise any; if it fails in both orders, the training says so
            network.to(memory_format=torch.contiguous_format)
        network.train(training)
    return network
