"""The weights of a network among the tensors of a checkpoint: found by the names of the network's own tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmp.errors import MmpError, nearest
from mmp.models.checkpoint_file import Group, read_groups
from mmp.models.plain_names import counted, plain

_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|teacher|target|shadow|polyak)(?![a-z])|averag|emamodel")
_OF_TRAINING = re.compile(r"optim|(?<![a-z])(momentum|exp_avg|square_avg|grad|masks?(?![a-z]))")  # named like weights
_MASKS = re.compile(r"(?<![a-z])masks?(?![a-z])")
COUNTER = "num_batches_tracked"  # of batch norm; older files lack it


@dataclass(frozen=True, eq=False)
class WeightSet:
    """Tensors of a checkpoint that may be the weights of a network.

    Attributes:
        key: Where they are: the keys of the checkpoint and the prefix of the names, joined by dots.
        tensors: The tensors, by the names of the network.
        others: The kinds of the values beside them that are not plain tensors, by name.
        notes: What was changed or ignored, a phrase each.
    """

    key: str
    tensors: Mapping[str, Tensor]
    others: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def fits(self, expected: Mapping[str, Tensor], optional: Collection[str], by_shape: bool = True) -> bool:
        """Return whether every tensor of a network is here, in its shape; optional ones may differ."""
        needed = {name: value.shape for name, value in expected.items() if name not in optional}
        return all(
            self.tensors[name].shape == shape or not by_shape if name in self.tensors else name.endswith(COUNTER)
            for name, shape in needed.items()
        )


def find_weights(
    path: Path,
    source: str,
    expected: Mapping[str, Tensor],
    weights_key: str | None = None,
    optional: Collection[str] = (),
) -> WeightSet:
    """Return the weights of a network in a checkpoint; if none fit, those with the most names in common.

    Any prefix of the names and any nesting of mappings is accepted: the network's own names decide. States of an
    optimizer are never taken. Averaged weights are taken if ``weights_key`` names them, or if there are no others.

    Args:
        path: The checkpoint.
        source: The key and value of the configuration that name it, for error messages.
        expected: The tensors of the network, by name.
        weights_key: The key of the weights to take; null decides as above.
        optional: Names of tensors that may be missing, or may have another shape.

    Raises:
        MmpError: if the file cannot be read, if no weights have the key, or if several different ones fit.
    """
    groups = read_groups(path, source)
    sets = [one for group in groups for one in _sets_of(group, expected)]
    fitting = [one for one in sets if one.fits(expected, optional)]
    if weights_key is not None:
        return _chosen(fitting or sets, weights_key, source)
    weights = [one for one in sets if not _OF_TRAINING.search(one.key.lower())]
    if not weights:
        key = (fitting or sets)[0].key
        way_out = f"set model.weights_key={key} if it holds the weights" if fitting else "save the weights"
        raise MmpError(f"{source}: contains no weights, but {key}, the state of a training or masks; {way_out}")
    usable = [one for one in weights if one in fitting]
    usable = usable or [one for one in weights if one.fits(expected, optional, by_shape=False)]
    candidates = [one for one in usable or weights if not _AVERAGED.search(one.key.lower())] or usable or weights
    taken = max(candidates, key=lambda one: (len(one.tensors.keys() & expected.keys()), len(one.tensors)))
    if usable and not all(one is taken or _equal(one, taken, expected) for one in candidates):
        keys = " or ".join(f"model.weights_key={one.key}" for one in candidates)
        raise MmpError(f"{source}: contains several weights of this model; set {keys}")
    masks = [one.key for one in sets if one is not taken and _MASKS.search(one.key.lower())]
    return _with_notes_of_others(taken, [one for one in usable if one not in candidates], masks)


def _chosen(sets: Sequence[WeightSet], weights_key: str, source: str) -> WeightSet:
    for one in sets:
        if one.key == weights_key:
            return one
    within = [one for one in sets if one.key.startswith(f"{weights_key}.")]
    if len(within) == 1:
        return within[0]
    keys = [one.key for one in within or sets if one.key]
    way_out = nearest(weights_key, keys) if keys else "its weights have no key, so set model.weights_key=null"
    raise MmpError(f"{source}: contains no weights model.weights_key={weights_key}; {way_out}")


def _equal(a: WeightSet, b: WeightSet, names: Collection[str]) -> bool:
    shared = [name for name in names if name in a.tensors and name in b.tensors]
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in shared)


def _with_notes_of_others(taken: WeightSet, averaged: Sequence[WeightSet], masks: Sequence[str]) -> WeightSet:
    keys = " or ".join(f"model.weights_key={one.key}" for one in averaged)
    notes = [f"averaged weights are there, too: {keys} takes them"] if averaged else []
    notes += [f"masks are there, too, and are not applied: {', '.join(masks)}"] if masks else []
    return replace(taken, notes=[*taken.notes, *notes])


def _sets_of(group: Group, expected: Collection[str]) -> Iterator[WeightSet]:
    """Yield the tensors of a mapping below each prefix that stands before a name of the network."""
    read = group.tensors
    tensors, notes = plain(read, expected)
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        counts.update(".".join([*parts[:at], ""]) for at in range(len(parts)) if ".".join(parts[at:]) in expected)
    most = max(counts.values(), default=0)
    prefixes = [prefix for prefix, count in counts.items() if 2 * count > most] or [""]
    for prefix in prefixes:
        longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        own = _below(prefix, tensors)
        copies = {name for name in own if longer and (prefix + name).startswith(longer) and name not in expected}
        outside = [name for name in tensors if not name.startswith(prefix) or name.removeprefix(prefix) in copies]
        yield WeightSet(
            f"{group.key}.{prefix}".strip("."),
            {name: value for name, value in own.items() if name not in copies},
            _below(prefix, {n: _kind(v) for n, v in group.entries.items() if n not in read}),
            [*notes, f"ignored {counted(outside)}"] if outside else notes,
        )


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
        return f"{kind} tensor on {value.device}"
    return type(value).__name__
