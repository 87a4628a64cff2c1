"""Losses that are compiled: many small operations on feature maps become a few loops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Tensor], Tensor]


@contextmanager
def compiled(loss: Loss, network: nn.Module, images: Tensor) -> Iterator[Loss]:
    """Compile a loss by ``torch.compile`` for a ``with`` block.

    Where that fails, for want of a C++ compiler or because of the network, the block gets the loss as it is, and a line
    in the log gives the reason. Afterwards all compiled functions of the process are forgotten, since
    ``torch.compile`` compiles the same code for a few networks only and is silent about the others.

    Args:
        loss: Returns the loss of a network on images.
        network: The network. Gradients are added to those of its parameters.
        images: A batch (B, C, H, W) of the size that will be used. Other sizes are compiled when they come.
    """
    try:
        yield _compiled(loss, network, images)
    finally:
        torch.compiler.reset()


def _compiled(loss: Loss, network: nn.Module, images: Tensor) -> Loss:
    found: Loss = torch.compile(loss, dynamic=False)
    try:
        found(network, images).backward()
    except Exception as error:  # compilers raise errors of many kinds
        reason = str(error).strip().splitlines()[0]
        log.warning("joint tuning goes on without torch.compile, which fails: %s", reason)
        return loss
    return found
