"""Costs of a network by the number of its channels: parameters, and multiply-adds with weights.

Multiply-adds are those of linear layers and convolutions for one image. The products of attention, of queries with keys
and of weights with values, have no parameters and are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmp.pruning.channels.group import ChannelGroup
from mmp.pruning.layers.eval_mode import evaluating

_PRODUCTS = (F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d)
_OF_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class _Axis:
    """A dimension of a tensor that loses channels.

    Attributes:
        width: Its size in the dense network.
        groups: For each group whose channels it holds: the group's number and the channels of one set.
    """

    width: int
    groups: tuple[tuple[int, int], ...]

    def left(self, removed: Sequence[int]) -> int:
        return self.width - sum(removed[number] * channels for number, channels in self.groups)


@dataclass(frozen=True)
class _Cost:
    """What one tensor costs.

    Attributes:
        others: Number of its elements for each channel of its axes.
        axes: The dimensions that lose channels.
        positions: Positions at which it is applied to one image; 0 if no product uses it.
        width: Bytes of one element.
        trained: Whether it is a parameter, not a buffer.
    """

    others: int
    axes: tuple[_Axis, ...]
    positions: int
    width: int
    trained: bool

    def elements(self, removed: Sequence[int]) -> int:
        return self.others * math.prod(axis.left(removed) for axis in self.axes)


@dataclass(frozen=True)
class Costs:
    """What a network costs if its groups lose given numbers of sets, in the order of the groups.

    Attributes:
        parameters: Number of parameters of the dense network.
        multiply_adds: Multiply-adds of the dense network for one image.
        bytes: Bytes of the dense network's parameters and saved buffers.
    """

    parameters: int
    multiply_adds: int
    bytes: int
    _tensors: tuple[_Cost, ...]

    @classmethod
    def of(cls, network: nn.Module, groups: Sequence[ChannelGroup], positions: Mapping[str, int]) -> Costs:
        """Measure a network.

        Args:
            network: The network.
            groups: Its groups of channels.
            positions: From :func:`positions_of`.
        """
        axes, trained = _axes(network, groups), dict(network.named_parameters())
        stored = {id(tensor): (name, tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
        stored |= {id(tensor): (name, tensor) for name, tensor in trained.items()}
        tensors = []
        for name, tensor in stored.values():
            own = {dim: _Axis(tensor.shape[dim], tuple(found)) for dim, found in axes.get(name, {}).items()}
            others = math.prod(size for dim, size in enumerate(tensor.shape) if dim not in own)
            cost = _Cost(others, tuple(own.values()), positions.get(name, 0), tensor.element_size(), name in trained)
            tensors.append(cost)
        nothing = [0] * len(groups)
        costs = cls(0, 0, 0, tuple(tensors))
        return replace(
            costs,
            parameters=costs.parameters_left(nothing),
            multiply_adds=costs.multiply_adds_left(nothing),
            bytes=costs.bytes_left(nothing),
        )

    def parameters_left(self, removed: Sequence[int]) -> int:
        """Return the number of parameters that are left after each group has lost a number of sets."""
        return sum(tensor.elements(removed) for tensor in self._tensors if tensor.trained)

    def multiply_adds_left(self, removed: Sequence[int]) -> int:
        """Return the multiply-adds that are left."""
        return sum(tensor.elements(removed) * tensor.positions for tensor in self._tensors)

    def bytes_left(self, removed: Sequence[int]) -> int:
        """Return the bytes that are left."""
        return sum(tensor.elements(removed) * tensor.width for tensor in self._tensors)


def _axes(network: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, dict[int, list[tuple[int, int]]]]:
    """Return the groups along each dimension of each tensor: their numbers, and the channels of one set."""
    modules = dict(network.named_modules())
    axes: dict[str, dict[int, list[tuple[int, int]]]] = {}
    for number, group in enumerate(groups):
        for part, channels in group.channels.items():
            if part.side == "in" and getattr(modules[part.name.rpartition(".")[0]], "groups", 1) > 1:
                continue  # a group of a grouped convolution has as many inputs as before
            names = [f"{part.name}.{own}" for own in _OF_NORM] if part.side == "norm" else [part.name]
            dim = {"out": 0, "in": 1, "norm": 0}.get(part.side)
            dim = int(part.side.removeprefix("dim")) if dim is None else dim
            for name in names:
                axes.setdefault(name, {}).setdefault(dim, []).append((number, channels.shape[1]))
    return axes


@torch.no_grad()
def positions_of(network: nn.Module, image: Tensor) -> dict[str, int]:
    """Return the number of positions at which each weight of a product is applied to one image, by name.

    Args:
        network: The network.
        image: One image, (1, C, H, W), on the network's device.
    """
    mode = _Counting({parameter.data_ptr(): name for name, parameter in network.named_parameters()})
    with evaluating(network), mode:
        network(image)
    return mode.positions


class _Counting(TorchFunctionMode):
    """Counts the outputs of every product with a weight."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.positions: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _PRODUCTS:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            name = self._names.get(weight.data_ptr()) if isinstance(weight, Tensor) else None
            if name:
                self.positions[name] = self.positions.get(name, 0) + output.numel() // len(weight)
        return output
