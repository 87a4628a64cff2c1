"""Losses that are compiled: many small operations on feature maps become a few loops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from traceback import format_exception_only

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Tensor], Tensor]


@contextmanager
def compiled(loss: Loss, network: nn.Module, batches: Iterable[Tensor]) -> Iterator[Loss]:
    """Compile a loss by ``torch.compile`` for a ``with`` block.

    Where that fails, for want of a C++ compiler or because of the network, the block gets the loss as it is, and a line
    in the log gives the reason. Afterwards all compiled functions of the process are forgotten, since
    ``torch.compile`` compiles the same code for a few networks only and is silent about the others.

    Args:
        loss: Returns the loss of a network on images.
        network: The network. Gradients are added to those of its parameters.
        batches: Images (B, C, H, W) of every number that will be used.
    """
    try:
        yield _compiled(loss, network, batches)
    finally:
        torch.compiler.reset()


def _compiled(loss: Loss, network: nn.Module, batches: Iterable[Tensor]) -> Loss:
    found: Loss = torch.compile(loss, dynamic=False)
    try:
        for images in batches:
            found(network, images).backward()
    except Exception as error:  # compilers raise errors of many kinds
        reason = " ".join(line.strip() for line in format_exception_only(error)[-1].splitlines()[:2])
        log.warning("joint tuning goes on without torch.compile, which fails: %s", reason)
        return loss
    return found
