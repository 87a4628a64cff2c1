"""Removal: a smaller network without the channels that nothing reads, which computes the same."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.pruning.channels.coupling import channel_groups
from mmp.pruning.channels.group import ChannelGroup, Part
from mmp.pruning.channels.probe import first_tensor
from mmp.pruning.layers.eval_mode import evaluating

log = logging.getLogger(__name__)

TOLERANCE = 1e-5  # of the largest logit: what two orders of the same sums differ by

# Attributes of modules that a forward pass may read: numbers of channels, and numbers of attention heads.
_WIDTHS = re.compile(r"(in|out)_(channels|features)|num_features|\w*_?dim|\w*(width|channels|size)")
_HEADS = re.compile(r"\w*heads?")


@dataclass(frozen=True)
class Removal:
    """The channels that were removed from a network.

    Attributes:
        removed: Number of sets of channels that were removed, and of all sets, by the group's name.
        kept: Why a group keeps channels that nothing reads, by the group's name.
        shapes: New shapes, by the name of the parameter or buffer.
        attributes: New values of the attributes of modules, by the module's name.
    """

    removed: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    attributes: dict[str, dict[str, int]] = field(default_factory=dict)


def shrink(network: nn.Module, images: Tensor) -> tuple[nn.Module, Removal]:
    """Return a copy of a pruned network without the channels that nothing reads.

    A channel is unread if all weights that multiply it are zero. Channels that are coupled are removed together, if all
    of them are unread. Every removal is checked: the smaller network must compute the same logits, up to 1e-5 of the
    largest. A group of channels that fails the check stays, with the reason in the result and in the log.

    Args:
        network: A pruned network, with zeros in its weights. It is not changed.
        images: A batch for the experiments and the check, (B, C, H, W).

    Returns:
        The smaller network in eval mode, and what was removed.

    Raises:
        MmpError: if there are no images.

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
    if not len(images):
        raise MmpError("shrink: the batch of images is empty; pass at least one image")
    unread = {}
    for group in channel_groups(network, images[:1]):
        sets = unread_sets(network, group)
        if len(sets) == len(group):
            sets = sets[1:]  # a layer needs a channel
        if len(sets):
            unread[group] = sets
    return remove(network, unread, images)


def unread_sets(network: nn.Module, group: ChannelGroup) -> Tensor:
    """Return the numbers of the sets of a group that nothing reads, int64."""
    tensors = {**dict(network.named_parameters(remove_duplicate=False)), **dict(network.named_buffers())}
    unread = torch.ones(len(group), dtype=torch.bool)
    for part in group.readers:
        columns = tensors[part.name].detach().ne(0).transpose(0, 1).flatten(1).any(1).cpu()
        unread &= ~columns[group.channels[part]].any(1)
    return unread.nonzero().flatten()


@torch.no_grad()
def remove(network: nn.Module, chosen: Mapping[ChannelGroup, Tensor], images: Tensor) -> tuple[nn.Module, Removal]:
    """Return a copy of a network without chosen sets of channels, checked as :func:`shrink` does.

    Args:
        network: The network. It is not changed.
        chosen: The numbers of the sets to remove, by group.
        images: The batch for the check, (B, C, H, W).
    """
    with evaluating(network):
        logits = first_tensor(network(images))
        kept: dict[str, str] = {}
        groups = dict(chosen)
        smaller, reason = _checked(network, groups, images, logits)
        if reason:
            for group in list(groups):
                _, reason = _checked(network, {group: groups[group]}, images, logits)
                if reason:
                    kept[group.name] = reason
                    log.warning("%s: its unread channels are not removed: %s", group.name, reason)
                    del groups[group]
            smaller, reason = _checked(network, groups, images, logits)
            if reason:
                log.warning("no channels are removed: %s", reason)
                kept |= {group.name: reason for group in groups}
                groups = {}
                smaller, _ = _checked(network, groups, images, logits)
    removed = {group.name: (len(sets), len(group)) for group, sets in groups.items()}
    return smaller, Removal(removed, kept, *_changes(network, smaller))


def _checked(
    network: nn.Module, groups: Mapping[ChannelGroup, Tensor], images: Tensor, logits: Tensor
) -> tuple[nn.Module, str | None]:
    """Return the network without sets of channels, and the reason why it does not compute the same, None if it does."""
    smaller = copy.deepcopy(network).eval()
    try:
        _take_out(smaller, groups)
        found = first_tensor(smaller.train().eval()(images))
    except Exception as error:  # the forward pass of a network whose shapes no longer fit can raise any exception
        return smaller, f"the network does not run without them ({str(error).splitlines()[0]})"
    if found.shape != logits.shape:
        return smaller, f"the network returns {tuple(found.shape)} without them instead of {tuple(logits.shape)}"
    difference = (found - logits).abs().max() / logits.abs().max().clamp_min(torch.finfo(logits.dtype).tiny)
    if not difference <= TOLERANCE:
        return smaller, f"without them, the logits differ by {difference:.1e} of the largest"
    return smaller, None


def _take_out(network: nn.Module, groups: Mapping[ChannelGroup, Tensor]) -> None:
    """Remove sets of channels from a network, in place."""
    modules = dict(network.named_modules())
    gone: dict[Part, Tensor] = {}
    for group, sets in groups.items():
        for part, channels in group.channels.items():  # two groups may share a part, as after a concatenation
            gone.setdefault(part, torch.zeros(_size(network, part), dtype=torch.bool))[channels[sets]] = True
    for group, sets in groups.items():
        widths = {len(gone[p]): int((~gone[p]).sum()) for p in group.channels if p.side in ("in", "out")}
        owners = [part.name.rpartition(".")[0] for part in group.channels if part.side in ("in", "out")]
        _count_heads(modules, owners, len(group), len(group) - len(sets), widths)
    for part, without in gone.items():
        _narrow(network, modules, part, (~without).nonzero().flatten())


def _narrow(network: nn.Module, modules: Mapping[str, Any], part: Part, keep: Tensor) -> None:
    """Keep only some channels of one part, in place."""
    path = part.name.rpartition(".")[0]
    if part.side == "norm":
        for name in ("weight", "bias", "running_mean", "running_var"):
            _slice(network, f"{part.name}.{name}", 0, keep)
        modules[part.name].num_features = len(keep)
    elif part.side == "out":
        _slice(network, part.name, 0, keep)
        _set(modules[path], ("out_channels", "out_features"), len(keep))
    elif part.side == "in":
        groups = getattr(modules[path], "groups", 1)
        if groups == 1:
            _slice(network, part.name, 1, keep)
        else:
            modules[path].groups = groups * len(keep) // _size(network, part)
        _set(modules[path], ("in_channels", "in_features"), len(keep))
    else:
        _slice(network, part.name, int(part.side.removeprefix("dim")), keep)


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


def _slice(network: nn.Module, name: str, dim: int, keep: Tensor) -> None:
    path, _, own = name.rpartition(".")
    owner = network.get_submodule(path)
    value = getattr(owner, own, None)
    if not isinstance(value, Tensor):
        return
    kept = value.detach().index_select(dim, keep.to(value.device))
    if isinstance(value, nn.Parameter):
        kept = nn.Parameter(kept, requires_grad=value.requires_grad)
    setattr(owner, own, kept)


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
    around = {".".join(path.split(".")[:end]) for path in owners for end in range(path.count(".") + 1)}
    for path in around:
        module = modules[path]
        numbers = {name: value for name, value in vars(module).items() if type(value) is int}
        if not any(_HEADS.fullmatch(name) and value == before for name, value in numbers.items()):
            continue
        for name, value in numbers.items():
            if _HEADS.fullmatch(name) and value == before:
                setattr(module, name, after)
            elif _WIDTHS.fullmatch(name) and value in widths and value % before == 0 and "head" not in name:
                setattr(module, name, value // before * after)


def _changes(network: nn.Module, smaller: nn.Module) -> tuple[dict[str, tuple[int, ...]], dict[str, dict[str, int]]]:
    """Return the shapes and the attributes that differ between two networks."""
    before, after = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (network, smaller))
    shapes = {name: tuple(value.shape) for name, value in after.items() if value.shape != before[name].shape}
    attributes: dict[str, dict[str, int]] = {}
    others = dict(smaller.named_modules())
    for path, module in network.named_modules():
        now = vars(others[path])
        changed = {k: now[k] for k, v in vars(module).items() if type(v) is int and now.get(k) != v}
        if changed:
            attributes[path] = changed
    return shapes, attributes
