"""Costs of a network by the number of its channels: parameters, and multiply-adds with weights.

Multiply-adds are those of linear layers and convolutions for one image. The products of attention, of queries with keys
and of weights with values, have no parameters and are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmp.pruning.channels.group import ChannelGroup
from mmp.pruning.channels.products import PRODUCTS, argument_of
from mmp.pruning.layers.eval_mode import evaluating

_OF_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class _Tensors:
    """The tensors of a network as arrays, so that a budget can try hundreds of widths in little time.

    Attributes:
        others: Number of elements of each tensor for each channel of its axes, int64 (tensors,).
        axes: The axes of each tensor, as indices into the widths, int64 (tensors, 2 or more). An axis is a dimension
            that loses channels. Missing ones have the index 0.
        widths: Size of each axis in the dense network, int64 (axes,); the first is 1.
        parts: For each group whose channels an axis holds: the axis, the group's number, and the channels of one set,
            int64 (parts, 3).
        positions: Positions at which each tensor is applied to one image; 0 if no product uses it, int64 (tensors,).
        bytes: Bytes of one element of each tensor, int64 (tensors,).
        trained: 1 for a parameter, 0 for a buffer, int64 (tensors,).
        prunable: 1 for the weight of a prunable layer, 0 for others, int64 (tensors,).
    """

    others: np.ndarray
    axes: np.ndarray
    widths: np.ndarray
    parts: np.ndarray
    positions: np.ndarray
    bytes: np.ndarray
    trained: np.ndarray
    prunable: np.ndarray

    def elements(self, removed: Sequence[int]) -> np.ndarray:
        """Return how many elements are left of each tensor, int64 (tensors,)."""
        axis, group, channels = self.parts.T
        left = self.widths.copy()
        np.subtract.at(left, axis, np.asarray(removed, dtype=np.int64)[group] * channels)
        return self.others * left[self.axes].prod(1)


@dataclass(frozen=True, eq=False)
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
    _tensors: _Tensors

    @classmethod
    def of(
        cls,
        network: nn.Module,
        groups: Sequence[ChannelGroup],
        positions: Mapping[str, int],
        prunable: Collection[str] = (),
    ) -> Costs:
        """Measure a network.

        Args:
            network: The network.
            groups: Its groups of channels.
            positions: From :func:`positions_of`.
            prunable: Names of the weights of its prunable layers; only :meth:`weights_left` needs them.
        """
        costs = cls(0, 0, 0, _tensors(network, groups, positions, prunable))
        nothing = [0] * len(groups)
        return replace(
            costs,
            parameters=costs.parameters_left(nothing),
            multiply_adds=costs.multiply_adds_left(nothing),
            bytes=costs.bytes_left(nothing),
        )

    def parameters_left(self, removed: Sequence[int]) -> int:
        """Return the number of parameters that are left after each group has lost a number of sets."""
        return int(self._tensors.elements(removed) @ self._tensors.trained)

    def weights_left(self, removed: Sequence[int]) -> int:
        """Return the number of weights of prunable layers that are left, which are those that the masks keep."""
        return int(self._tensors.elements(removed) @ self._tensors.prunable)

    def multiply_adds_left(self, removed: Sequence[int]) -> int:
        """Return the multiply-adds that are left."""
        return int(self._tensors.elements(removed) @ self._tensors.positions)

    def bytes_left(self, removed: Sequence[int]) -> int:
        """Return the bytes that are left."""
        return int(self._tensors.elements(removed) @ self._tensors.bytes)


def _tensors(
    network: nn.Module, groups: Sequence[ChannelGroup], positions: Mapping[str, int], prunable: Collection[str]
) -> _Tensors:
    found, trained = _axes(network, groups), dict(network.named_parameters())
    stored = {id(tensor): (name, tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
    stored |= {id(tensor): (name, tensor) for name, tensor in trained.items()}
    widths, parts, axes = [1], [], []
    for name, tensor in stored.values():
        own = found.get(name, {})
        axes.append(list(range(len(widths), len(widths) + len(own))))
        parts += [(axis, *part) for axis, on in zip(axes[-1], own.values(), strict=True) for part in on]
        widths += [tensor.shape[dim] for dim in own]
    most = max([2, *map(len, axes)])
    fixed = [[s for dim, s in enumerate(t.shape) if dim not in found.get(name, {})] for name, t in stored.values()]
    return _Tensors(
        np.array([math.prod(sizes) for sizes in fixed], dtype=np.int64),
        np.array([[*own, *[0] * (most - len(own))] for own in axes], dtype=np.int64),
        np.array(widths, dtype=np.int64),
        np.array(parts, dtype=np.int64).reshape(-1, 3),
        np.array([positions.get(name, 0) for name, _ in stored.values()], dtype=np.int64),
        np.array([tensor.element_size() for _, tensor in stored.values()], dtype=np.int64),
        np.array([name in trained for name, _ in stored.values()], dtype=np.int64),
        np.array([name in prunable for name, _ in stored.values()], dtype=np.int64),
    )


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
        if func in PRODUCTS:
            weight = argument_of(args, kwargs, 1, "weight")
            name = self._names.get(weight.data_ptr()) if isinstance(weight, Tensor) else None
            if name:
                self.positions[name] = self.positions.get(name, 0) + output.numel() // len(weight)
        return output
