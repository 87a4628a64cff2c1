"""A removal of channels as a value: what it leaves of each tensor, and the attributes of modules that it changes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from mmp.errors import MmpError

# Attributes of modules that a forward pass may read: numbers of channels and of attention heads, and the scale of
# attention, which is made of a number of channels.
WIDTHS = re.compile(r"(in|out)_(channels|features)|num_features|\w*_?dim|\w*(width|channels|size)")
HEADS = re.compile(r"\w*heads?")
SCALES = re.compile(r"\w*scale|temperature")

Indices = dict[str, dict[int, Tensor]]  # of what is left, by the tensor's name and by the dimension


@dataclass(frozen=True, eq=False)
class Removal:
    """The channels that were removed from a network.

    Attributes:
        removed: Number of sets of channels that were removed, and of all sets, by the group's name.
        kept: Why a group keeps channels that nothing reads, by the group's name.
        shapes: New shapes, by the name of the parameter or buffer.
        attributes: New values of the attributes of modules, by the module's name.
        factors: Factors of the rows of a parameter that the removal changes, by its name, of its original length.
        indices: The indices that are kept, int64, by the name of the parameter or buffer and by the dimension that is
            shorter.
    """

    removed: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    attributes: dict[str, dict[str, int | float]] = field(default_factory=dict)
    indices: Indices = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)

    def narrowed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the removal leaves of tensors of the original network, such as its masks or its ``state_dict``.

        Args:
            tensors: Tensors of the original shapes, by the name of their parameter or buffer. Those in floating point
                are values, and are multiplied by `factors`; masks are bool.

        Raises:
            MmpError: if a tensor has another shape, as one from which the same channels are removed already.
        """
        left = dict(tensors)
        for name in left.keys() & self.indices.keys():
            if any(int(kept.max()) >= left[name].shape[dim] for dim, kept in self.indices[name].items()) or (
                name in self.factors and len(self.factors[name]) != len(left[name])
            ):
                shape = tuple(left[name].shape)
                raise MmpError(f"{name!r} has the shape {shape}, but the removal is for the network before it")
        for name in left.keys() & self.factors.keys():
            if left[name].is_floating_point():
                factors = self.factors[name].to(left[name])
                left[name] = left[name] * factors.view(-1, *[1] * (left[name].dim() - 1))
        for name in left.keys() & self.indices.keys():
            for dim, kept in self.indices[name].items():
                left[name] = left[name].index_select(dim, kept.to(left[name].device))
        return left

    def apply(self, network: nn.Module) -> None:
        """Remove the same channels from a network of the original shapes, in place. Its other values stay."""
        tensors = tensors_of(network)
        set_tensors(network, self.narrowed({name: tensors[name].detach() for name in self.indices if name in tensors}))
        set_attributes(network, self.attributes)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, under all of their names."""
    parameters = network.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(network.named_buffers(remove_duplicate=False))}


def set_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers, in place, by tensors of any shape and data type.

    Args:
        network: The network.
        tensors: The new values, by the name of the parameter or buffer.
    """
    before = tensors_of(network)
    for name, value in tensors.items():
        path, _, own = name.rpartition(".")
        old = before[name]
        as_before = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        setattr(network.get_submodule(path), own, as_before)


def counts_channels(name: str, value: object) -> bool:
    """Return whether an attribute of a module may be a number of channels or of heads, or the scale of attention."""
    if type(value) is int:
        return name == "groups" or bool(WIDTHS.fullmatch(name) or HEADS.fullmatch(name))
    return type(value) is float and bool(SCALES.fullmatch(name))


def set_attributes(network: nn.Module, attributes: Mapping[str, Mapping[str, int | float]]) -> None:
    """Set attributes of modules that count channels, in place.

    Args:
        network: The network.
        attributes: The new values, by the module's name and the attribute.

    Raises:
        MmpError: if there is no such module, if it has no such number of channels or scale, or if a value is of another
            type, not positive, not finite, or a larger number of channels.
    """
    modules = dict(network.named_modules())
    for path, values in attributes.items():
        for name, value in values.items():
            before = vars(modules[path]).get(name) if path in modules else None
            if not counts_channels(name, before):
                raise MmpError(f"attribute {name!r} of module {path!r}: the network has no such number of channels")
            is_count = type(before) is int
            if type(value) is not type(before) or not 0 < value <= (before if is_count else sys.float_info.max):
                allowed = f"a whole number from 1 to {before}" if is_count else "a positive floating-point number"
                raise MmpError(f"attribute {name!r} of module {path!r} is {value!r}, but must be {allowed}")
            setattr(modules[path], name, value)
