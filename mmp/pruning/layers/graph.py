"""A model as a graph: its prunable weights, the modules around them, and timm's metadata.

The tables below distinguish kinds of modules that have the same types.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from mmp.errors import MmpError

# Projections that a module holds as parameters, without a Linear around them (nn.MultiheadAttention, timm's
# MultiQueryAttentionV2). Only the name tells them from a latent or a position table.
_BARE_WEIGHT = re.compile(r"(?:in|q|k|v|query|key|value|out)_proj(?:_weight)?|(?:q|k|v|kv|qkv)_weight")
_RECURRENT_WEIGHT = re.compile(r"weight_(?:ih|hh|hr)(?:_l\d+)?(?:_reverse)?")

# Slots of an attention module. Group 1 is the part that a child computes: query, key or value.
_QKV = re.compile(
    r"(?:to_|w_?)?(q|k|v|qk|kv|qkv|query|key|value)s?(?:_?(?:proj|conv|gate|linear|lin|weight))*",
    re.IGNORECASE,
)
_ATTN_OUT = re.compile(
    r"(?:to_)?(?:proj|projection|out|output|o|wo|final|dense|merge)(?:_?(?:proj|out|conv|weight))*",
)
_LETTERS = {"query": "q", "key": "k", "value": "v"}

# Modules that mix tokens in place of attention, by the names of their children: (inputs, outputs).
_MIXERS: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    (frozenset({"attn", "v"}), frozenset({"proj"})),  # VOLO's outlook attention
    (frozenset({"f", "h"}), frozenset({"proj"})),  # FocalNet's modulation
    (frozenset({"BCdt_proj", "hz_proj"}), frozenset({"out_proj"})),  # EfficientViM's state space
    (frozenset({"pwise"}), frozenset({"upsampling"})),  # LowFormer's attention on a coarse grid
    (frozenset({"in_proj"}), frozenset({"out_proj", "attn_out_proj"})),  # fused projections
)

# Names of a stem's outermost module. A network inside a stem is not part of it.
_STEM = re.compile(r"\w*(?:stem|embed)\w*|conv_?[01]|layer0", re.IGNORECASE)
EMBED = re.compile(r"\w*embed\w*", re.IGNORECASE)
INNER_NETWORK = "backbone"
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_STEM_LAYERS = 12  # more than in any stem of timm; a whole network called `embedder` is no stem


@dataclass(frozen=True, eq=False)
class Weight:
    """A prunable weight, and properties that follow from its owner. Paths are relative to the graph's root.

    Attributes:
        name: Its name in ``named_parameters``.
        owner: The module that owns it.
        parameter: The parameter itself.
    """

    name: str
    owner: Any
    parameter: nn.Parameter

    @property
    def path(self) -> str:
        """Path of its owner."""
        return self.name.rpartition(".")[0]

    @property
    def top(self) -> str:
        """Name of the root's child that it is in."""
        return self.name.partition(".")[0]

    @property
    def parts(self) -> list[str]:
        """Parts of its name, without the last part if that is ``weight``."""
        parts = self.name.split(".")
        return parts[:-1] if parts[-1] == "weight" else parts

    @property
    def is_conv(self) -> bool:
        """Whether its owner is a convolution."""
        return hasattr(self.owner, "kernel_size")

    @property
    def is_linear(self) -> bool:
        """Whether its owner is a linear layer."""
        return hasattr(self.owner, "in_features")

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size in each dimension; empty if the owner is no convolution."""
        return _sizes(self.owner.kernel_size) if self.is_conv else ()

    @property
    def is_pointwise(self) -> bool:
        """Whether it applies to every position separately: a linear layer, or a 1x1 convolution."""
        return self.is_linear or (self.is_conv and set(self.kernel) == {1})

    @property
    def is_depthwise(self) -> bool:
        """Whether its owner is a convolution with one filter per channel."""
        groups = getattr(self.owner, "groups", 1)
        return self.is_conv and bool(groups == self.owner.in_channels > 1)

    @property
    def is_patchwise(self) -> bool:
        """Whether its owner is a convolution of patches that do not overlap: its kernel equals its stride."""
        if not self.is_conv or getattr(self.owner, "transposed", False):
            return False
        return self.kernel == _sizes(getattr(self.owner, "stride", 1)) and max(self.kernel) > 1

    @property
    def fan(self) -> tuple[Any, Any]:
        """Input and output channels or features; None if the owner is neither a convolution nor a linear layer."""
        what = "channels" if self.is_conv else "features"
        return getattr(self.owner, f"in_{what}", None), getattr(self.owner, f"out_{what}", None)


class Graph:
    """A model's modules and prunable weights by path, with timm's metadata of the model.

    Args:
        model: Any module; its parameters may be on any device, ``meta`` included.

    Attributes:
        root: The model, or the module inside it if it only wraps one.
        prefix: Path from the model to the root, with a trailing dot; empty if they are the same.
        modules: The root's modules by path.
        weights: Its prunable weights, in ``named_parameters`` order.

    Raises:
        MmpError: if a lazy layer has no shape yet, or a module is quantized.
    """

    def __init__(self, model: nn.Module) -> None:
        self.root, self.prefix = _unwrap(model)
        self.modules = dict(self.root.named_modules())
        for path, module in self.modules.items():
            if type(module).__module__.startswith(_QUANTIZED):
                raise MmpError(f"{self.prefix + path!r} is a quantized module; prune the model before it is quantized")
        self.weights = list(_weights(self.root, self.modules))
        self._inside: dict[str, list[Weight]] = {}
        for weight in self.weights:
            parts = weight.name.split(".")
            for end in range(len(parts)):
                self._inside.setdefault(".".join(parts[:end]), []).append(weight)

    def inside(self, path: str) -> list[Weight]:
        """Return the prunable weights in a module, in order; none if there is no such module."""
        return self._inside.get(path, [])

    def slots(self, path: str) -> set[str]:
        """Return the names of a module's children and of its own parameters."""
        module = self.modules[path]
        return {*dict(module.named_children()), *dict(module.named_parameters(recurse=False))}

    def around(self, weight: Weight) -> Iterator[tuple[str, nn.Module, str]]:
        """Yield the modules around a weight from the innermost to the root: path, module, slot of the child inside."""
        parts = weight.parts
        for end in range(len(parts) - 1, -1, -1):
            path = ".".join(parts[:end])
            yield path, self.modules[path], parts[end]

    def stated(self, key: str) -> tuple[str, ...] | None:
        """Return the module paths under a key of timm's metadata; None if no such module exists."""
        for attribute in ("pretrained_cfg", "default_cfg"):
            cfg = getattr(self.root, attribute, None)
            value = cfg.get(key) if isinstance(cfg, dict) else getattr(cfg, key, None)
            paths = (value,) if isinstance(value, str) else tuple(value or ())
            paths = tuple(path for path in paths if path in self.modules)
            if paths:
                return paths
        return None

    @cached_property
    def classifiers(self) -> tuple[str, ...] | None:
        """Paths of the modules that timm's metadata names as the classifier."""
        return self.stated("classifier")

    @cached_property
    def heads(self) -> set[str]:
        """Names of the root's children that contain such a classifier, but not the first layer."""
        tops = {path.partition(".")[0] for path in self.classifiers or ()}
        return {top for top in tops if self.weights[0] not in self.inside(top)}

    @cached_property
    def first(self) -> tuple[Weight, ...]:
        """The weights that read the image: those in timm's metadata, else the first layer if it is a convolution."""
        stated = [w for path in self.stated("first_conv") or () for w in self.inside(path)]
        if stated or len(self.weights) < 2:
            return tuple(stated)
        weight = self.weights[0]
        if weight is self.only_linear:  # a classifier that was created before the other layers
            weight = self.weights[1]
        named = any(_STEM.fullmatch(part) for part in weight.parts)
        return (weight,) if weight.is_conv or named else ()

    @cached_property
    def only_linear(self) -> Weight | None:
        """The linear layer of a network that has one; None if it has none or several."""
        linear = [weight for weight in self.weights if weight.is_linear]
        return linear[0] if len(linear) == 1 else None

    @cached_property
    def stems(self) -> dict[str, str]:
        """The role of each stem, ``stem`` or ``patch_embed``, by the path of its outermost module."""
        stems = {}
        for weight in self.first:
            outermost = weight.path
            embeds = False
            for path, module, _ in self.around(weight):
                if not path or path.rpartition(".")[2] == INNER_NETWORK:
                    break
                small = len(self.inside(path)) <= _STEM_LAYERS
                if small and self.called(path, _STEM) and not isinstance(module, nn.ModuleList):
                    outermost = path
                    embeds = self.called(path, EMBED)
            patches = weight.is_patchwise or weight.is_linear
            stems[outermost] = "patch_embed" if embeds or patches else "stem"
        return stems

    def called(self, path: str, pattern: re.Pattern[str]) -> bool:
        """Return whether the name of a module's slot or class matches a pattern."""
        own = path.rpartition(".")[2]
        return bool(pattern.fullmatch(own) or pattern.fullmatch(type(self.modules[path]).__name__))

    def attention_slots(self, path: str) -> tuple[set[str], set[str]] | None:
        """Return the input and output slots of attention or of a module in its place; None for other modules."""
        slots = self.slots(path)
        found = {s: m.group(1).lower() for s in slots if (m := _QKV.fullmatch(s))}
        letters = "".join(_LETTERS.get(kind, kind) for kind in found.values())
        if "q" in letters and "k" in letters:
            return set(found), {s for s in slots if _ATTN_OUT.fullmatch(s)}
        for inputs, outputs in _MIXERS:
            if inputs <= slots and outputs & slots:
                return set(inputs), set(outputs)
        return None


def _unwrap(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the module inside wrappers, and its path with a trailing dot.

    A wrapper is a module without parameters of its own and with only one child that has parameters.
    """
    prefix = ""
    sequence = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    while not (isinstance(model, sequence) or hasattr(model, "default_cfg")):
        if any(True for _ in model.parameters(recurse=False)):
            break
        full = [(n, c) for n, c in model.named_children() if any(True for _ in c.parameters())]
        if len(full) != 1 or not any(True for _ in full[0][1].children()):
            break
        name, model = full[0]
        prefix += f"{name}."
    return model, prefix


def _weights(root: nn.Module, modules: dict[str, nn.Module]) -> Iterator[Weight]:
    seen: set[int] = set()
    for name, parameter in root.named_parameters(remove_duplicate=False):
        path, _, own = name.rpartition(".")
        owner = modules.get(path)  # None where a module has a second path
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise MmpError(f"the shape of {name!r} isn't known yet; run one batch through the model first")
        numbers = parameter.itemsize > 1 and parameter.is_floating_point()
        if owner is None or id(parameter) in seen or parameter.ndim < 2 or not numbers or not _is_weight(owner, own):
            continue
        seen.add(id(parameter))
        yield Weight(name, owner, parameter)


def _is_weight(owner: nn.Module, own: str) -> bool:
    """Return whether a parameter of two or more dimensions is a weight, by its owner's attributes and its own name."""
    if own == "weight":  # attributes instead of classes include CondConv2d and linear layers of users
        conv = all(hasattr(owner, a) for a in ("kernel_size", "in_channels", "out_channels"))
        linear = all(hasattr(owner, a) for a in ("in_features", "out_features"))
        return conv or linear or isinstance(owner, nn.Bilinear)
    recurrent = isinstance(owner, nn.RNNBase | nn.RNNCellBase) and _RECURRENT_WEIGHT.fullmatch(own)
    return bool(recurrent or _BARE_WEIGHT.fullmatch(own))


def _sizes(value: int | Iterable[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
