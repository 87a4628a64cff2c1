"""Functions compiled by ``torch.compile``: many small operations on feature maps become a few loops."""

from __future__ import annotations

import logging
from collections.abc import Callable
from traceback import format_exception_only
from typing import TypeVar, cast

import torch
from torch import Tensor

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Tensor])


def compiled(function: F, trial: Callable[[F], object], purpose: str) -> F:
    """Return a function compiled by ``torch.compile``, or the function itself where that fails.

    It fails for want of a C++ compiler, for instance, or because of the network; a line in the log gives the reason.
    What the process compiled before is forgotten, since ``torch.compile`` compiles the same code for a few networks
    only and is silent about the others.

    Args:
        function: Computes a tensor from images and other arguments.
        trial: Calls a function as it will be called, forward and backward, with every number of images that will occur.
        purpose: What goes on without compilation where it fails, for the log.
    """
    torch.compiler.reset()
    found = cast("F", torch.compile(function, dynamic=False))
    try:
        trial(found)
    except Exception as error:  # compilers raise errors of many kinds
        reason = " ".join(line.strip() for line in format_exception_only(error)[-1].splitlines()[:2])
        log.warning("%s goes on without torch.compile, which fails: %s", purpose, reason)
        return function
    return found
