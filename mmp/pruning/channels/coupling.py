"""Coupled channels: the channels of several tensors that can only be removed together, found by experiment.

Torch-Pruning (Fang et al. 2023, arXiv 2301.12900) follows the operators of a computation graph, with a rule for each.
The experiments here (:mod:`mmp.pruning.channels.probe`) need no rules: a channel that a layer writes and a channel that
a layer reads are coupled if changing the first changes the second.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mmp.pruning.channels.group import ChannelGroup, Part
from mmp.pruning.channels.moved import Moved
from mmp.pruning.channels.precision import full_float32
from mmp.pruning.channels.probe import Probe
from mmp.pruning.channels.products import Product
from mmp.pruning.channels.running import device_to_run, running
from mmp.pruning.channels.seeded import seeded
from mmp.pruning.layers.eval_mode import evaluating

# A channel that changes more than this share of a layer's inputs changes all of them: small changes are missed.
_MOST = 0.6

Channels = Sequence[int] | Tensor | np.ndarray


@torch.no_grad()
def channel_groups(network: nn.Module, image: Tensor) -> list[ChannelGroup]:
    """Return the groups of coupled channels of a network that can be removed.

    Channels are left out if they reach the network's output without another layer, or if a layer that writes or reads
    them runs several times. Experiments may miss a coupling. :func:`mmp.pruning.channels.shrink.shrink` therefore
    checks each removal.

    Args:
        network: Any network. It is not changed.
        image: One image, (1, C, H, W).

    Returns:
        The groups, in the order of the layers that write them.

    Raises:
        MmpError: if the network is on the ``meta`` device, or does not run on the image.
    """
    device_to_run(network, "groups of channels")
    with evaluating(network), seeded(), full_float32():
        with running(network, image, "groups of channels"):
            probe = Probe(network, image)
        nodes = _Nodes(probe)
        for weight in probe.products:
            _find(probe, weight, nodes)
        for part, size in nodes.sizes.items():
            if part.name in probe.unusual:
                nodes.block(part, range(size))
        _find_tensors(probe, nodes)
    return _groups(probe, nodes)


class _Nodes:
    """Channels as numbers, and the couplings between them."""

    def __init__(self, probe: Probe) -> None:
        self.first: dict[Part, int] = {}
        self.sizes: dict[Part, int] = {}
        self._edges: list[tuple[np.ndarray, np.ndarray]] = []
        self.blocked: list[int] = []
        for product in probe.products.values():
            written = Part(product.weight, "out")
            self.add(written, product.outputs)
            self.add(Part(product.weight, "in"), product.inputs)
            if product.bias is not None:
                bias = Part(product.bias, "dim0")
                self.add(bias, product.outputs)
                self.join(written, range(product.outputs), bias, range(product.outputs))
            self._pass_on(product)

    @property
    def count(self) -> int:
        return sum(self.sizes.values())

    def add(self, part: Part, size: int) -> None:
        if part not in self.first:
            self.first[part] = self.count
            self.sizes[part] = size

    def join(self, one: Part, channels: Channels, other: Part, others: Channels) -> None:
        """Couple channels pairwise; of two lists of different lengths, the shorter has one element."""
        a = np.atleast_1d(np.asarray(channels)) + self.first[one]
        b = np.atleast_1d(np.asarray(others)) + self.first[other]
        a, b = np.broadcast_arrays(a, b)
        self._edges.append((a, b))

    def block(self, part: Part, channels: Channels) -> None:
        self.blocked += (np.asarray(channels) + self.first[part]).tolist()

    def labels(self) -> np.ndarray:
        """Return the number of the set that each channel is in: the lowest number of its channels."""
        labels = np.arange(self.count)
        if not self._edges:
            return labels
        a, b = (np.concatenate(ends) for ends in zip(*self._edges, strict=True))
        while (labels[a] != labels[b]).any():
            lowest = np.minimum(labels[a], labels[b])
            for ends in (labels[a], labels[b], a, b):
                np.minimum.at(labels, ends, lowest)
            labels = labels[labels]
        return labels

    def _pass_on(self, product: Product) -> None:
        """Couple the inputs and outputs of each group of a grouped convolution."""
        if product.groups > 1:
            inputs = np.arange(product.inputs).reshape(product.groups, -1)
            outputs = np.arange(product.outputs).reshape(product.groups, -1)
            read, written = Part(product.weight, "in"), Part(product.weight, "out")
            for ins, outs in zip(inputs, outputs, strict=True):
                self.join(read, ins[:1], read, ins)
                self.join(read, ins[:1], written, outs)


def _find(probe: Probe, weight: str, nodes: _Nodes) -> None:
    """Couple every output channel of a product with the input channels that it changes."""
    written, count = Part(weight, "out"), probe.products[weight].outputs
    ends = [torch.tensor([k], device="cpu") for k in sorted({0, count // 2, count - 1})]
    look = probe.change(weight, [torch.arange(count, device="cpu"), *ends])
    readers, reaches_output = frozenset(look.changed()), bool(look.output[0])
    if reaches_output:
        nodes.block(written, range(count))
    for part in sorted(readers):  # a set has another order in every process
        nodes.add(part, probe.width(part))
    if not readers:
        return
    alone = look[1:].changed()
    mixed = {part: changed.all(0) | (changed.float().mean(1).median() > _MOST) for part, changed in alone.items()}
    if reaches_output or all(part in mixed and mixed[part].all() for part in readers):
        nodes.join(written, [0], written, range(count))
        for part in readers:
            nodes.join(written, [0], part, range(nodes.sizes[part]))
        return
    tests, members = _codes(count)
    uncertain: dict[Part, Tensor] = {}
    for part, changed in probe.change(weight, tests, readers).changed().items():
        # A channel cannot be the cause if a test with it left the input unchanged.
        possible = (~changed).float().T @ members.float() == 0
        every = possible.all(1) & mixed.get(part, torch.zeros(len(possible), dtype=torch.bool, device="cpu"))
        if every.any():  # as through a layer norm
            nodes.join(written, [0], written, range(count))
            nodes.join(written, [0], part, every.nonzero().flatten())
        single = possible.sum(1) == 1
        where = single.nonzero().flatten()
        nodes.join(written, possible[where].int().argmax(1), part, where)
        if (rest := possible & ~(single | every)[:, None]).any():
            uncertain[part] = rest
    if uncertain:
        alike = {int(changes) for changed in alone.values() for changes in changed.sum(1) if changes > 1}
        _distinguish(probe, weight, uncertain, alike, nodes)


def _distinguish(probe: Probe, weight: str, uncertain: dict[Part, Tensor], alike: set[int], nodes: _Nodes) -> None:
    """Couple input channels that may have several causes, by tests of neighbouring channels.

    Channels that act alike, as those of an attention head, are as many as the channels that one of them changes, or a
    divisor. The tests have the largest such size at which none of them has channels of two heads.

    Args:
        probe: The experiments.
        weight: The product that writes the channels.
        uncertain: Which outputs may change each input, bool (inputs, outputs), by the part that reads them.
        alike: The numbers of input channels that single channels change, if more than one.
        nodes: Gets the couplings.
    """
    count = probe.products[weight].outputs
    size = math.gcd(count, *alike) if alike else 1
    while True:
        blocks = torch.arange(count, device="cpu").split(size)
        moved = probe.change(weight, blocks, set(uncertain)).changed()
        if size == 1 or all(_apart(moved[part], max(alike)) for part in uncertain if part in moved):
            break
        size = next(smaller for smaller in range(size // 2, 0, -1) if size % smaller == 0)
    members = torch.zeros(len(blocks), count, dtype=torch.bool, device="cpu")
    for row, block in zip(members, blocks, strict=True):
        row[block] = True
    for part, possible in uncertain.items():
        for j in possible.any(1).nonzero().flatten().tolist() if part in moved else ():
            causes = (possible[j] & members[moved[part][:, j]].any(0)).nonzero().flatten()
            if len(causes):
                nodes.join(Part(weight, "out"), causes, part, [j])


def _apart(changed: Tensor, most: int) -> bool:
    """Return whether no test has channels of two heads: what two of them change is disjoint, or one has the other's.

    Args:
        changed: Which inputs each test changes, bool (tests, inputs).
        most: The most inputs that one channel changes.
    """
    distinct = changed.unique(dim=0).float()
    size, common = distinct.sum(1), distinct @ distinct.T
    return bool(((common == 0) | (common == torch.minimum(size, size[:, None]))).all() and size.max() <= most)


def _find_tensors(probe: Probe, nodes: _Nodes) -> None:
    """Couple elements of other parameters and buffers, such as biases of heads, with the channels that they change."""
    used = {name for product in probe.products.values() for name in (product.weight, product.bias)}
    norms = {part.name for part in nodes.first if part.side == "norm"}
    labels = nodes.labels()
    removable = {label for members in _alike(nodes, labels).values() for label in members}
    for name, tensor in probe.tensors.items():
        if name in used or name.rpartition(".")[0] in norms or not tensor.is_floating_point() or not tensor.dim():
            continue
        whole = probe.change_tensor(name, 0, [torch.arange(len(tensor), device="cpu")])
        if len(_sets(whole, 0, nodes, labels) & removable) > 1:
            for dim, size in enumerate(tensor.shape):
                if size > 1:
                    _find_dimension(probe, name, dim, nodes, labels)


def _find_dimension(probe: Probe, name: str, dim: int, nodes: _Nodes, labels: np.ndarray) -> None:
    """Couple the indices of a dimension with sets of channels, if each index changes the channels of one set only."""
    size = probe.tensors[name].shape[dim]
    if len(_sets(probe.change_tensor(name, dim, [torch.tensor([0], device="cpu")]), 0, nodes, labels)) != 1:
        return  # as of positions, which all heads share
    moved = probe.change_tensor(name, dim, [torch.tensor([i], device="cpu") for i in range(size)])
    sets = [_sets(moved, i, nodes, labels) for i in range(size)]
    if any(len(found) != 1 for found in sets) or len(set.union(*sets)) == 1:
        return
    part = Part(name, f"dim{dim}")
    nodes.add(part, size)
    for index in range(size):
        for other, changed in moved.changed().items():
            if len(where := changed[index].nonzero().flatten()):
                nodes.join(part, [index], other, where)


def _sets(moved: Moved, test: int, nodes: _Nodes, labels: np.ndarray) -> set[int]:
    """Return the sets of channels that a test changes."""
    found: set[int] = set()
    for part, changed in moved.changed().items():
        if part in nodes.first:
            found.update(labels[nodes.first[part] + changed[test].nonzero().flatten().numpy()].tolist())
    return found


def _codes(count: int) -> tuple[list[Tensor], Tensor]:
    """Return tests that distinguish ``count`` channels: for each bit of their numbers, those with a 0 and with a 1.

    Returns:
        The channels of each test, and whether each channel is in it, bool (tests, count).
    """
    numbers = torch.arange(count, device="cpu")
    bits = max(1, (count - 1).bit_length())
    members = torch.stack([(numbers >> bit & 1) == value for bit in range(bits) for value in (0, 1)])
    members = members[members.any(1)]
    return [row.nonzero().flatten() for row in members], members


def _alike(nodes: _Nodes, labels: np.ndarray) -> dict[tuple[tuple[Part, int], ...], dict[int, dict[Part, np.ndarray]]]:
    """Return the sets of channels that can be removed, by number, grouped by the parts that they are in."""
    blocked = set(labels[nodes.blocked].tolist())
    sets: dict[int, dict[Part, np.ndarray]] = defaultdict(dict)
    for part, first in nodes.first.items():
        own = labels[first : first + nodes.sizes[part]]
        order = np.argsort(own, kind="stable")
        numbers, starts = np.unique(own[order], return_index=True)
        for number, channels in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            if number not in blocked:
                sets[number][part] = channels
    alike: dict[tuple[tuple[Part, int], ...], dict[int, dict[Part, np.ndarray]]] = defaultdict(dict)
    for number, found in sets.items():
        alike[tuple((part, len(channels)) for part, channels in found.items())][number] = found
    return {
        signature: members
        for signature, members in alike.items()
        if len(members) > 1 and {"in", "out"} <= {part.side for part, _ in signature}
    }


def _groups(probe: Probe, nodes: _Nodes) -> list[ChannelGroup]:
    grouped = {name for name, product in probe.products.items() if product.groups > 1}
    groups = []
    for signature, members in _alike(nodes, nodes.labels()).items():
        channels = {p: torch.from_numpy(np.stack([found[p] for found in members.values()])) for p, _ in signature}
        groups.append(ChannelGroup(channels, frozenset(p.name for p in channels) & grouped))
    order_of = {name: i for i, name in enumerate(probe.products)}
    return sorted((group for group in groups if group.readers), key=lambda group: order_of[group.writer.name])
