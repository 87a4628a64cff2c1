"""Removal: a smaller network without the channels that nothing reads, which computes the same."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmp.errors import MmpError, first_line
from mmp.pruning.channels.coupling import channel_groups
from mmp.pruning.channels.group import ChannelGroup, Part
from mmp.pruning.channels.head_dimensions import HeadDimensions
from mmp.pruning.channels.masks import require_multiple
from mmp.pruning.channels.precision import full_float32
from mmp.pruning.channels.probe import first_tensor, randomised
from mmp.pruning.channels.removal import (
    HEADS,
    SCALES,
    WIDTHS,
    Indices,
    Removal,
    counts_channels,
    set_tensors,
    tensors_of,
)
from mmp.pruning.channels.running import device_to_run, running
from mmp.pruning.channels.seeded import seeded
from mmp.pruning.channels.unread import may_have_unread, removable
from mmp.pruning.layers.eval_mode import evaluating
from mmp.tensors import all_finite

log = logging.getLogger(__name__)

TOLERANCE = 1e-5  # of the largest logit: what two orders of the same sums differ by


def shrink(network: nn.Module, images: Tensor, multiple: int = 1) -> tuple[nn.Module, Removal]:
    """Return a copy of a pruned network without the channels that nothing reads.

    A channel is unread if all weights that multiply it are zero. Channels that are coupled are removed together, if all
    of them are unread. Every removal is checked: the smaller network must compute the same logits, up to 1e-5 of the
    largest. A group of channels that fails the check stays, with the reason in the result and in the log.

    Args:
        network: A pruned network, with zeros in its weights. It is not changed.
        images: A batch for the experiments and the check, (B, C, H, W).
        multiple: Widths of convolutions stay divisible by what they share with it, so some unread channels stay. With
            16, 64 channels can become 48, and 40 can become 32. onnxruntime computes convolutions of other widths in a
            slower way.

    Returns:
        The smaller network in eval mode, and what was removed.

    Raises:
        MmpError: if there are no images, if the network does not run on them or its outputs are not finite, or if the
            multiple is no whole number of at least 1.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     network[2].weight[:, :6] = 0  # nothing reads the first six hidden units
        >>> smaller, removal = shrink(network, torch.randn(3, 4))
        >>> smaller[0].weight.shape, removal.removed
        (torch.Size([2, 4]), {'0.weight': (6, 8)})
    """
    if not isinstance(images, Tensor) or not images.numel():
        raise MmpError("shrink: there are no images; pass a tensor of at least one image, (B, C, H, W)")
    require_multiple(multiple)
    images = images.to(device_to_run(network, "shrink"))
    chosen = removable(network, channel_groups(network, images[:1]), multiple) if may_have_unread(network) else {}
    refused = _refused_dimensions(network, chosen, images)
    smaller, removal = remove(network, {g: sets for g, sets in chosen.items() if g.name not in refused}, images)
    removal = replace(removal, kept=refused | removal.kept)
    for name, reason in removal.kept.items():
        log.warning("%s: its unread channels are not removed: %s", name, reason)
    return smaller, removal


def _refused_dimensions(network: nn.Module, chosen: Mapping[ChannelGroup, Tensor], images: Tensor) -> dict[str, str]:
    """Return why dimensions of heads cannot be removed, by the group's name.

    No experiment shows how a network uses them, and images without any contrast would hide it. So the removal is first
    tried with random biases, norms and images.
    """
    dimensions: dict[ChannelGroup, Tensor] = {g: sets for g, sets in chosen.items() if isinstance(g, HeadDimensions)}
    if not dimensions:
        return {}
    with seeded():
        try:
            return remove(randomised(network), dimensions, torch.randn(images[:1].shape, device="cpu"))[1].kept
        except MmpError as error:  # the network does not run on the CPU, for instance
            return {group.name: f"their removal cannot be tried ({error})" for group in dimensions}


@torch.no_grad()
def remove(network: nn.Module, chosen: Mapping[ChannelGroup, Tensor], images: Tensor) -> tuple[nn.Module, Removal]:
    """Return a copy of a network without chosen sets of channels, checked as :func:`shrink` does.

    Args:
        network: The network. It is not changed.
        chosen: The numbers of the sets to remove, by group.
        images: The batch for the check, (B, C, H, W), on the network's device.

    Raises:
        MmpError: if the network does not run on the images, or if its outputs are not finite.
    """
    with evaluating(network), full_float32():
        with running(network, images, "shrink"):
            logits = first_tensor(network(images))
        if not all_finite(logits):
            raise MmpError("shrink: the network's outputs hold NaN or infinity; check its weights and the images")
        kept: dict[str, str] = {}
        groups = dict(chosen)
        smaller, indices, reason = _checked(network, groups, images, logits)
        if reason:
            groups = {}
            for group, sets in chosen.items():
                *_, reason = _checked(network, {**groups, group: sets}, images, logits)
                if reason:
                    kept[group.name] = reason
                else:
                    groups[group] = sets
            smaller, indices, _ = _checked(network, groups, images, logits)
    removed = {group.name: (len(sets), len(group)) for group, sets in groups.items()}
    return smaller, Removal(removed, kept, *_changes(network, smaller), indices, _factors(network, groups))


def _checked(
    network: nn.Module, groups: Mapping[ChannelGroup, Tensor], images: Tensor, logits: Tensor
) -> tuple[nn.Module, Indices, str | None]:
    """Take sets of channels out of a copy of a network.

    Returns:
        The copy, the indices that are left of its tensors, and the reason why it does not compute the same, None if it
        does.
    """
    smaller, indices = copy.deepcopy(network).eval(), Indices()
    try:
        indices = _take_out(smaller, groups)
        found = first_tensor(smaller.train().eval()(images))
    except Exception as error:  # the forward pass of a network whose shapes no longer fit can raise any exception
        return smaller, indices, f"the network does not run without them ({first_line(error)})"
    if found.shape != logits.shape:
        shapes = f"{tuple(found.shape)} without them instead of {tuple(logits.shape)}"
        return smaller, indices, f"the network returns {shapes}"
    difference = _difference(found, logits)
    if not difference <= TOLERANCE:  # rounding, perhaps: of low precision, or of sums with many terms
        difference = min(difference, _difference_in_float64(network, smaller, images))
    if not difference <= TOLERANCE:
        return smaller, indices, f"without them, the logits differ by {difference:.1e} of the largest"
    return smaller, indices, None


def _difference(found: Tensor, logits: Tensor) -> float:
    """Return the largest difference of a logit, as a share of the largest logit."""
    return float((found - logits).abs().max() / logits.abs().max().clamp_min(torch.finfo(logits.dtype).tiny))


def _difference_in_float64(network: nn.Module, smaller: nn.Module, images: Tensor) -> float:
    """Return the difference without rounding; infinity if the network does not run in float64."""
    try:
        logits, found = (first_tensor(copy.deepcopy(one).double()(images.double())) for one in (network, smaller))
    except Exception:  # a forward pass can convert its values to any type, and raise any exception
        return math.inf
    return _difference(found, logits)


def _take_out(network: nn.Module, groups: Mapping[ChannelGroup, Tensor]) -> Indices:
    """Remove sets of channels from a network, in place, and return the indices that are left of its tensors."""
    modules = dict(network.named_modules())
    gone: dict[Part, Tensor] = {}
    for group, sets in groups.items():
        for part, channels in group.channels.items():  # two groups may share a part, as after a concatenation
            none = torch.zeros(_size(network, part), dtype=torch.bool, device="cpu")
            gone.setdefault(part, none)[channels[sets]] = True
    for group, sets in groups.items():
        if isinstance(group, HeadDimensions):
            _count_dimensions(modules, group, len(group) - len(sets))
            continue
        widths = {len(gone[p]): int((~gone[p]).sum()) for p in group.channels if p.side in ("in", "out")}
        owners = [part.name.rpartition(".")[0] for part in group.channels if part.side in ("in", "out")]
        _count_heads(modules, owners, len(group), len(group) - len(sets), widths)
    tensors = tensors_of(network)
    indices = Indices()
    for part, without in gone.items():
        kept = (~without).nonzero().flatten()
        for name, dim in _slices(modules, part):
            if name in tensors:
                indices.setdefault(name, {})[dim] = kept
        _set_widths(modules, part, len(kept), len(without))
    removal = Removal(indices=indices, factors=_factors(network, groups))
    set_tensors(network, removal.narrowed({name: tensors[name].detach() for name in indices}))
    return indices


def _slices(modules: Mapping[str, Any], part: Part) -> list[tuple[str, int]]:
    """Return the tensors that have the channels of a part, each with the dimension of the channels."""
    if part.side == "norm":
        return [(f"{part.name}.{own}", 0) for own in ("weight", "bias", "running_mean", "running_var")]
    if part.side == "out":
        return [(part.name, 0)]
    if part.side == "in":
        return [] if getattr(modules[part.name.rpartition(".")[0]], "groups", 1) > 1 else [(part.name, 1)]
    return [(part.name, int(part.side.removeprefix("dim")))]


def _set_widths(modules: Mapping[str, Any], part: Part, after: int, before: int) -> None:
    """Correct the attributes of the module that has a part, in place."""
    if part.side == "norm":
        modules[part.name].num_features = after
        return
    module = modules[part.name.rpartition(".")[0]]
    if part.side == "out":
        _set(module, ("out_channels", "out_features"), after)
    elif part.side == "in":
        _set(module, ("in_channels", "in_features"), after)
        if getattr(module, "groups", 1) > 1:
            module.groups = module.groups * after // before


def _size(network: nn.Module, part: Part) -> int:
    """Return the number of channels of a part."""
    if part.side == "norm":
        norm: Any = network.get_submodule(part.name)
        return int(norm.num_features)
    path, _, own = part.name.rpartition(".")
    owner: Any = network.get_submodule(path)
    shape = getattr(owner, own).shape
    if part.side.startswith("dim"):
        return int(shape[int(part.side.removeprefix("dim"))])
    return int(shape[0] if part.side == "out" else shape[1] * getattr(owner, "groups", 1))


def _set(module: nn.Module, names: Iterable[str], value: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, value)


def _count_heads(
    modules: Mapping[str, nn.Module], owners: Iterable[str], before: int, after: int, widths: Mapping[int, int]
) -> None:
    """Correct the number of heads, and the widths made of it, in the modules around layers whose heads were removed.

    Attention reshapes what its layers return by a number of heads that it holds as an attribute.
    """
    for path in _around(owners):
        module = modules[path]
        numbers = {name: value for name, value in vars(module).items() if type(value) is int}
        if not any(HEADS.fullmatch(name) and value == before for name, value in numbers.items()):
            continue
        for name, value in numbers.items():
            if HEADS.fullmatch(name) and value == before:
                setattr(module, name, after)
            elif WIDTHS.fullmatch(name) and value in widths and value % before == 0 and "head" not in name:
                setattr(module, name, value // before * after)


def _count_dimensions(modules: Mapping[str, nn.Module], group: HeadDimensions, after: int) -> None:
    """Correct the numbers of dimensions, and the scale made of them, in the modules around an attention."""
    heads = len(group.strands) // 2
    scale = group.key_size**-0.5
    for path in _around(part.name.rpartition(".")[0] for part in group.decisive):
        module = modules[path]
        numbers = {name: value for name, value in vars(module).items() if type(value) in (int, float)}
        if not any(HEADS.fullmatch(name) and value == heads for name, value in numbers.items()):
            continue
        for name, value in numbers.items():
            if type(value) is float and SCALES.fullmatch(name) and math.isclose(value, scale):
                setattr(module, name, (group.key_size * after // len(group)) ** -0.5)
            elif type(value) is int and value in group.sizes and WIDTHS.fullmatch(name):
                setattr(module, name, value * after // len(group))


def _factors(network: nn.Module, groups: Mapping[ChannelGroup, Tensor]) -> dict[str, Tensor]:
    """Return the factors of queries that lose dimensions: attention divides by the root of their number.

    Returns:
        The factors of the rows of weights, biases and batch norms, by the name of the parameter.
    """
    modules, tensors = dict(network.named_modules()), tensors_of(network)
    factors: dict[str, Tensor] = {}
    for group, sets in groups.items():
        queries = group.queries if isinstance(group, HeadDimensions) else {}
        norms = [part for part in queries if part.side == "norm"]
        for part in norms or queries:
            for name, _ in _slices(modules, part)[:2]:  # of a norm, its weight and its bias
                factor = factors.setdefault(name, torch.ones(len(tensors[name]), dtype=torch.float64, device="cpu"))
                factor[queries[part]] = math.sqrt(1 - len(sets) / len(group))
    return factors


def _around(layers: Iterable[str]) -> set[str]:
    """Return the paths of the modules that layers are in, and of the layers themselves if they have an owner."""
    return {".".join(path.split(".")[:end]) for path in layers for end in range(path.count(".") + 1)}


def _changes(
    network: nn.Module, smaller: nn.Module
) -> tuple[dict[str, tuple[int, ...]], dict[str, dict[str, int | float]]]:
    """Return the shapes and the attributes that differ between two networks."""
    before, after = tensors_of(network), tensors_of(smaller)
    shapes = {name: tuple(value.shape) for name, value in after.items() if value.shape != before[name].shape}
    attributes: dict[str, dict[str, int | float]] = {}
    others = dict(smaller.named_modules())
    for path, module in network.named_modules():
        now = vars(others[path])
        changed = {k: now[k] for k, v in vars(module).items() if counts_channels(k, v) and now.get(k) != v}
        if changed:
            attributes[path] = changed
    return shapes, attributes
