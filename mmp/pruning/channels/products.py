"""Products: the calls of torch that multiply an input with a weight, in linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PRODUCTS = frozenset({F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d})


@dataclass(frozen=True)
class Product:
    """A weight that is multiplied by one input.

    Attributes:
        weight: Its name in ``named_parameters``.
        bias: Name of the bias that is added to the product; None without one.
        outputs: Number of output channels.
        inputs: Number of input channels, of all groups together.
        groups: Groups of a convolution.
        channel: Dimension of the channels in input and output: 1, or -1 for a linear layer.
    """

    weight: str
    bias: str | None
    outputs: int
    inputs: int
    groups: int
    channel: int


def arguments_of(func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Any, int] | None:
    """Return input, weight, bias and groups of a product; None if they are no tensors."""
    inputs, weight = (argument_of(args, kwargs, i, name) for i, name in enumerate(("input", "weight")))
    if not isinstance(inputs, Tensor) or not isinstance(weight, Tensor):
        return None
    groups = 1 if func is F.linear else argument_of(args, kwargs, 6, "groups") or 1
    return inputs, weight, argument_of(args, kwargs, 2, "bias"), groups


def argument_of(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    """Return an argument of a call by its position or its name; None without it."""
    return args[position] if len(args) > position else kwargs.get(name)
