"""A model's prunable layers, each with the role it plays, its stage and its depth.

`prunable_layers` is the entry. It works on any ``nn.Module``: what a layer *is* comes from its module's type,
what it *does* from where it sits. The evidence is used in this order, and `_RULES` is that order in code:

1. what timm states about its own models (`classifier`, `first_conv`, `feature_info`), read off the model;
2. types and structure: groups of a convolution, kernel against stride, which siblings a module has
   (a query beside a key is attention; a sigmoid behind a bottleneck is a channel gate), widths in and out;
3. names, held as data in the tables below, where structure alone can't tell two cases apart.

``docs/roles.md`` gives the decided rule for each kind of layer with its reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from mmp.errors import MmpError, nearest

ROLES: tuple[str, ...] = (
    "stem",
    "patch_embed",
    "patch_merge",
    "downsample",
    "conv",
    "depthwise",
    "attn_qkv",
    "attn_proj",
    "mlp_fc1",
    "mlp_fc2",
    "classifier",
    "other",
)


@dataclass(frozen=True)
class Layer:
    """One weight tensor that may be pruned.

    Attributes:
        name: The weight's own ``state_dict`` key, such as ``layer1.0.conv1.weight``. A weight that several
            modules share has one layer, under its first name in ``named_parameters`` order.
        module: Dotted path of the module that owns it; empty if that is the model itself.
        role: One of `ROLES`.
        stage: Stage that it belongs to, from 0, where the architecture has stages; else None. A stem, a patch
            embedding and a classifier stand outside the stages.
        depth: Position among the model's n prunable layers, i / (n - 1), in [0, 1]; 0 for an only layer.
        shape: Shape of the tensor.
    """

    name: str
    module: str
    role: str
    stage: int | None
    depth: float
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def prunable_layers(model: nn.Module) -> tuple[Layer, ...]:
    """List the prunable layers of a model.

    A prunable layer is a weight tensor of two or more dimensions of a convolution, linear, recurrent or
    attention module. Biases, norm scales, embeddings, position tables, tokens, latents and layer-scale gains
    belong to none of these types and are never listed. Whether a parameter is frozen makes no difference.

    Args:
        model: Any module; parameters may be on any device, ``meta`` included. A wrapper with one child that
            holds everything (``torch.compile``, a ``LightningModule``) is looked through.

    Returns:
        The layers in the order in which the model registers their weights (``named_parameters``), which is
        close to the order of execution but need not be it.

    Raises:
        MmpError: If the model has no prunable layer, or a lazy layer whose shape isn't known yet.
    """
    graph = _Graph(model)
    weights, prefix = graph.weights, graph.prefix
    if not weights:
        raise MmpError(
            f"{type(model).__name__} has no prunable layer: no convolution, linear or attention weight of "
            "two or more dimensions; pass the network itself, not a part without weights"
        )
    roles = _roles(graph)
    stages = _stages(graph, roles)
    span = max(len(weights) - 1, 1)
    return tuple(
        Layer(
            prefix + w.name,
            (prefix + w.name).rpartition(".")[0],
            role,
            stage,
            i / span,
            tuple(w.parameter.shape),
        )
        for i, (w, role, stage) in enumerate(zip(weights, roles, stages, strict=True))
    )


def prunable_parameters(model: nn.Module, layers: Iterable[Layer]) -> dict[str, nn.Parameter]:
    """Look up the live parameters behind layers.

    Args:
        model: The model that the layers come from, or another with the same ``state_dict`` keys.
        layers: Layers of it.

    Returns:
        Layer name to parameter, in the order of `layers`; the parameters are the model's own, not copies.

    Raises:
        MmpError: If the model has no parameter of a layer's name, or has it in another shape.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {}
    for layer in layers:
        if layer.name not in parameters:
            raise MmpError(
                f"{type(model).__name__} has no parameter {layer.name!r}; {nearest(layer.name, parameters)}"
            )
        parameter = parameters[layer.name]
        if tuple(parameter.shape) != layer.shape:
            raise MmpError(
                f"{type(model).__name__} holds {layer.name!r} in shape {tuple(parameter.shape)}, "
                f"not {layer.shape}; list the layers of this model anew"
            )
        found[layer.name] = parameter
    return found


# --- the tables: names, for what types and structure leave open ---------------------------------------------

# Parameters that a module holds directly, without a Linear around them (nn.MultiheadAttention, timm's
# MultiQueryAttentionV2): nothing but the name sets a projection apart from a latent or a position table.
_BARE_WEIGHT = re.compile(
    r"(?:in|q|k|v|query|key|value|out)_proj(?:_weight)?|(?:q|k|v|kv|qkv)_weight|weight_(?:ih|hh|hr)_l\d+\w*"
)

# Slots of an attention module. Group 1 says which of query, key and value a child computes.
_QKV = re.compile(
    r"(?:to_|w_?)?(q|k|v|qk|kv|qkv|query|key|value)s?(?:_?(?:proj|conv|gate|linear|lin|weight))*",
    re.IGNORECASE,
)
_ATTN_OUT = re.compile(
    r"(?:to_)?(?:proj|projection|out|output|o|wo|final|dense|merge)(?:_?(?:proj|out|conv|weight))*",
)
_LETTERS = {"query": "q", "key": "k", "value": "v"}

# Modules that mix tokens in attention's place, by the children they have: (inputs, outputs).
_MIXERS: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    (frozenset({"attn", "v"}), frozenset({"proj"})),  # VOLO's outlook attention
    (frozenset({"f", "h"}), frozenset({"proj"})),  # FocalNet's modulation
    (frozenset({"BCdt_proj", "hz_proj"}), frozenset({"out_proj"})),  # EfficientViM's state space
    (frozenset({"pwise"}), frozenset({"upsampling"})),  # LowFormer's attention on a coarse grid
    (frozenset({"in_proj"}), frozenset({"out_proj", "attn_out_proj"})),  # fused projections
)

# An MLP by the name of its slot or class, or by two children that a block holds without a module around them.
_MLP_NAME = re.compile(r"(?:\w+_)?(?:mlp|ffn|feed_?forward|channel_mixer)\w*", re.IGNORECASE)
_MLP_CLASS = re.compile(r"\w*(?:Mlp|MLP|FFN|FeedForward|GLU)")
_MLP_PAIRS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"fc1"}), "fc2"),
    (frozenset({"linear1"}), "linear2"),
    (frozenset({"pwconv1"}), "pwconv2"),
    (frozenset({"pw1"}), "pw2"),
    (frozenset({"f1", "f2"}), "g"),  # StarNet multiplies two expansions
    (frozenset({"in_proj"}), "mlp_out_proj"),  # ViT blocks that fuse attention's and the MLP's input
)

# Gates whose last activation is a softmax or none at all, so that no sigmoid gives them away.
_GATE_CLASS = re.compile(r"\w*(?:SelectiveKernelAttn|SplitAttn|SqueezeExcit\w*|SEModule|SEBlock|Eca\w*)")

# Where the stem ends: its outermost module is called one of these; a network inside it is not part of it.
_STEM = re.compile(r"\w*(?:stem|embed)\w*|conv_?[01]|layer0", re.IGNORECASE)
_EMBED = re.compile(r"\w*embed\w*", re.IGNORECASE)
_INNER_NETWORK = "backbone"
_STEM_LAYERS = 12  # more than any stem in timm holds; a whole network called `embedder` is no stem

# Layers that only produce position information, or sit in the head before the classifier.
_POSITION = re.compile(r"cpb_mlp|meta_mlp|pos_?(?:emb|enc)\w*|rel_pos\w*")
_HEAD = re.compile(r"pre_(?:logits|classifier)")
_CLASSIFIER = re.compile(r"classifier|head|fc|logits")  # of a 1x1 convolution: SqueezeNet ends in one

# What changes resolution or width between or beside blocks. Nothing in a module's own type says that a 1x1
# convolution is the residual branch and not the first layer of the main branch.
_PATCH_MERGE = re.compile(r"\w*patch_?(?:merg|embed)\w*", re.IGNORECASE)
_DOWNSAMPLE = re.compile(
    r"(?:\w+_)?down(?:sample\w*|s|_?conv)?|shortcut\w*|skip\w*|project|transition\d*|pool|c1x1_w\w*"
)
_DOWNSAMPLE_CLASS = re.compile(r"\w*Downsampl\w*")

# Stages where no feature_info tells: siblings numbered like this, if they differ in width.
_STAGE = re.compile(r"(.*\b(?:\w*(?:layer|stage|level|block)s?))[._]?(\d+)")

# Names from outside timm (Hugging Face's layout: the output projections sit outside the module they serve).
_BY_PATH: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r".*attention\.output\.dense"), "attn_proj"),
    (re.compile(r".*intermediate\.dense"), "mlp_fc1"),
    (re.compile(r".*output\.dense"), "mlp_fc2"),
)


# --- the graph: weights, and the modules around them --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Weight:
    """A prunable weight, and what its owner's attributes tell; paths are relative to the graph's root."""

    name: str
    owner: Any
    parameter: nn.Parameter

    @property
    def path(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def top(self) -> str:
        """The root's child that holds it."""
        return self.name.partition(".")[0]

    @property
    def parts(self) -> list[str]:
        """The path to the weight; without the last part where that is just ``weight``."""
        parts = self.name.split(".")
        return parts[:-1] if parts[-1] == "weight" else parts

    @property
    def is_conv(self) -> bool:
        return hasattr(self.owner, "kernel_size")

    @property
    def is_linear(self) -> bool:
        return hasattr(self.owner, "in_features")

    @property
    def kernel(self) -> tuple[int, ...]:
        return _sizes(self.owner.kernel_size) if self.is_conv else ()

    @property
    def is_pointwise(self) -> bool:
        """Whether every position is treated on its own: a linear, or a 1x1 convolution."""
        return self.is_linear or (self.is_conv and set(self.kernel) == {1})

    @property
    def is_depthwise(self) -> bool:
        groups = getattr(self.owner, "groups", 1)
        return self.is_conv and bool(groups == self.owner.in_channels > 1)

    @property
    def is_patchwise(self) -> bool:
        """Whether the convolution cuts its input into patches that don't overlap: kernel equal to stride."""
        if not self.is_conv or getattr(self.owner, "transposed", False):
            return False
        return self.kernel == _sizes(getattr(self.owner, "stride", 1)) and max(self.kernel) > 1

    @property
    def fan(self) -> tuple[Any, Any]:
        """Channels or features in, and out; None where the owner is neither kind."""
        what = "channels" if self.is_conv else "features"
        return getattr(self.owner, f"in_{what}", None), getattr(self.owner, f"out_{what}", None)


class _Graph:
    """A model's modules and prunable weights by path, with what timm says about the model."""

    def __init__(self, model: nn.Module) -> None:
        self.root, self.prefix = _unwrap(model)
        self.modules = dict(self.root.named_modules())
        self.weights = list(_weights(self.root, self.modules))
        self._inside: dict[str, list[_Weight]] = {}
        for weight in self.weights:
            parts = weight.name.split(".")
            for end in range(len(parts)):
                self._inside.setdefault(".".join(parts[:end]), []).append(weight)

    def inside(self, path: str) -> list[_Weight]:
        """The prunable weights in a module, in order; none if there is no such module."""
        return self._inside.get(path, [])

    def slots(self, path: str) -> set[str]:
        """Names of a module's children and own parameters."""
        module = self.modules[path]
        return {*dict(module.named_children()), *dict(module.named_parameters(recurse=False))}

    def around(self, weight: _Weight) -> Iterator[tuple[str, nn.Module, str]]:
        """The modules around a weight, innermost first, the root last: path, module, slot that leads in."""
        parts = weight.parts
        for end in range(len(parts) - 1, -1, -1):
            path = ".".join(parts[:end])
            yield path, self.modules[path], parts[end]

    def stated(self, key: str) -> tuple[str, ...] | None:
        """Module paths that timm's metadata gives under a key; None where it gives none that exist."""
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
        return self.stated("classifier")

    @cached_property
    def heads(self) -> set[str]:
        """Top-level modules that hold the stated classifiers, and no input layer."""
        tops = {path.partition(".")[0] for path in self.classifiers or ()}
        return {top for top in tops if self.weights[0] not in self.inside(top)}

    @cached_property
    def first(self) -> tuple[_Weight, ...]:
        """The weights that read the image: as timm states, else the first layer if it is a convolution."""
        stated = [w for path in self.stated("first_conv") or () for w in self.inside(path)]
        if stated or len(self.weights) < 2:
            return tuple(stated)
        weight = self.weights[0]
        named = any(_STEM.fullmatch(part) for part in weight.parts)
        return (weight,) if weight.is_conv or named else ()

    @cached_property
    def stems(self) -> dict[str, str]:
        """Outermost module of each stem to its role, `stem` or `patch_embed`."""
        stems = {}
        for weight in self.first:
            outermost = weight.path
            embeds = False
            for path, module, _ in self.around(weight):
                if not path or path.rpartition(".")[2] == _INNER_NETWORK:
                    break
                small = len(self.inside(path)) <= _STEM_LAYERS
                if small and self.called(path, _STEM) and not isinstance(module, nn.ModuleList):
                    outermost = path
                    embeds = self.called(path, _EMBED)
            patches = weight.is_patchwise or weight.is_linear
            stems[outermost] = "patch_embed" if embeds or patches else "stem"
        return stems

    def called(self, path: str, pattern: re.Pattern[str]) -> bool:
        own = path.rpartition(".")[2]
        return bool(pattern.fullmatch(own) or pattern.fullmatch(type(self.modules[path]).__name__))

    def attention_slots(self, path: str) -> tuple[set[str], set[str]] | None:
        """Input and output slots of a module that is attention, or stands in its place; else None."""
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
    """Look through wrappers: modules with nothing of their own around one child that holds everything."""
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


def _weights(root: nn.Module, modules: dict[str, nn.Module]) -> Iterator[_Weight]:
    for name, parameter in root.named_parameters():
        path, _, own = name.rpartition(".")
        owner = modules[path]
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise MmpError(f"the shape of {name!r} isn't known yet; run one batch through the model first")
        if parameter.ndim >= 2 and _is_weight(owner, own):
            yield _Weight(name, owner, parameter)


def _is_weight(owner: nn.Module, own: str) -> bool:
    """Whether a parameter of two or more dimensions is a weight, from its owner's type and its own name."""
    if own == "weight":  # by attribute, not class, so that CondConv2d and a user's own linear count as well
        conv = all(hasattr(owner, a) for a in ("kernel_size", "in_channels", "out_channels"))
        linear = all(hasattr(owner, a) for a in ("in_features", "out_features"))
        return conv or linear or isinstance(owner, nn.Bilinear)
    return bool(_BARE_WEIGHT.fullmatch(own))


def _sizes(value: int | Iterable[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


# --- the rules: a role, or None for the next rule to decide -------------------------------------------------


def _classifier(graph: _Graph, weight: _Weight) -> str | None:
    """The modules that timm states as the classifier."""
    owner = weight.path
    stated = graph.classifiers or ()
    return "classifier" if any(owner == path or owner.startswith(f"{path}.") for path in stated) else None


def _gate(graph: _Graph, weight: _Weight) -> str | None:
    """Squeeze-excite and its kin: pointwise layers that narrow or keep the width, then a gate."""
    if not weight.is_pointwise:
        return None
    for path, module, _ in graph.around(weight):
        if not path or graph.attention_slots(path):
            break
        if _GATE_CLASS.fullmatch(type(module).__name__):
            return "other"
        inner = graph.inside(path)
        sigmoid = any(
            type(c).__name__.lower().endswith("sigmoid") and not any(True for _ in c.parameters())
            for c in module.children()
        )
        if sigmoid and len(inner) <= 5 and all(w.is_pointwise for w in inner):
            wide, narrow = inner[0].fan
            if narrow <= wide:
                return "other"
    return None


def _depthwise(_: _Graph, weight: _Weight) -> str | None:
    """One filter per channel, wherever it sits."""
    return "depthwise" if weight.is_depthwise else None


def _stem(graph: _Graph, weight: _Weight) -> str | None:
    """Everything in the module that reads the image; the projection behind a network inside it too."""
    owner = weight.path
    for path, role in graph.stems.items():
        if owner == path or owner.startswith(f"{path}."):
            return role
    for path, module, slot in graph.around(weight):
        if slot == _INNER_NETWORK or isinstance(module, nn.ModuleList):
            return None
        if path and _INNER_NETWORK in graph.slots(path) and graph.called(path, _EMBED):
            return "patch_embed"
    return None


def _position(_: _Graph, weight: _Weight) -> str | None:
    """Small networks that compute position biases."""
    return "other" if any(_POSITION.fullmatch(part) for part in weight.parts[:-1]) else None


def _attention(graph: _Graph, weight: _Weight) -> str | None:
    """Inputs and outputs of attention: a module that holds a query and a key."""
    for path, _, slot in graph.around(weight):
        slots = graph.attention_slots(path)
        if slots is None:
            if isinstance(graph.modules[path], nn.MultiheadAttention):
                return "attn_proj" if slot == "out_proj" else "attn_qkv"
            continue
        inputs, outputs = slots
        return "attn_qkv" if slot in inputs else "attn_proj" if slot in outputs else None
    return None


def _head(graph: _Graph, weight: _Weight) -> str | None:
    """Linears that share the head with the classifier."""
    named = any(_HEAD.fullmatch(part) for part in weight.parts)
    return "classifier" if named or (weight.is_linear and weight.top in graph.heads) else None


def _mlp(graph: _Graph, weight: _Weight) -> str | None:
    """The pointwise layers of an MLP: the one that comes back to the input's width is fc2, the others fc1."""
    if not weight.is_pointwise:
        return None
    for path, module, slot in graph.around(weight):
        if not path:
            break
        own = path.rpartition(".")[2]
        if _MLP_NAME.fullmatch(own) or _MLP_CLASS.fullmatch(type(module).__name__):
            inner = [w for w in graph.inside(path) if w.is_pointwise and not w.is_depthwise]
            if len(inner) > 1:
                width = inner[0].fan[0]
                back = [w for w in inner if w.fan[1] == width and w.fan[0] != width] or inner
                return "mlp_fc2" if weight is back[-1] else "mlp_fc1"
        alternatives = isinstance(module, nn.ModuleList)
        linears = [] if alternatives else [w for w in graph.inside(path) if w.is_linear]
        if weight in linears and len(linears) == 2 and linears[0].fan == linears[1].fan[::-1]:
            return "mlp_fc2" if weight is linears[1] else "mlp_fc1"
        slots = graph.slots(path)
        for first, last in _MLP_PAIRS:
            if first <= slots and last in slots and slot in first | {last}:
                return "mlp_fc2" if slot == last else "mlp_fc1"
    return None


def _downsample(graph: _Graph, weight: _Weight) -> str | None:
    """What changes resolution or width between blocks or stages, and the projection on a residual branch."""
    names = weight.parts[-1:]
    for path, module, _ in graph.around(weight):
        own = path.rpartition(".")[2]
        if not path or own == _INNER_NETWORK:
            break
        if graph.attention_slots(path):
            return None
        names += [own, type(module).__name__]
    if any(_PATCH_MERGE.fullmatch(name) for name in names):
        return "patch_merge"
    if any(_DOWNSAMPLE.fullmatch(n) or _DOWNSAMPLE_CLASS.fullmatch(n) for n in names):
        return "patch_merge" if weight.is_linear and "reduction" in names else "downsample"
    if weight.is_patchwise:
        return "downsample"
    widens = weight.is_linear and weight.fan[0] != weight.fan[1]
    beside_attention = {"attn", "mlp"} <= graph.slots(".".join(weight.parts[:-1]))
    return "downsample" if widens and beside_attention else None


def _by_path(_: _Graph, weight: _Weight) -> str | None:
    """Layouts from outside timm, by name."""
    path = weight.path
    return next((role for pattern, role in _BY_PATH if pattern.fullmatch(path)), None)


def _by_type(_: _Graph, weight: _Weight) -> str | None:
    """A convolution that nothing else claims is a `conv`, anything else `other`."""
    return "conv" if weight.is_conv else "other"


_RULES: tuple[Callable[[_Graph, _Weight], str | None], ...] = (
    _classifier,
    _gate,
    _depthwise,
    _stem,
    _position,
    _attention,
    _head,
    _mlp,
    _downsample,
    _by_path,
    _by_type,
)


def _roles(graph: _Graph) -> list[str]:
    """One role per weight: the first rule that decides, then the linears that lead up to the classifier."""
    roles = [next(role for rule in _RULES if (role := rule(graph, weight))) for weight in graph.weights]
    plain = [w.is_linear and role == "other" for w, role in zip(graph.weights, roles, strict=True)]
    last = graph.weights[-1]
    if graph.classifiers is None and (plain[-1] or (last.is_pointwise and _CLASSIFIER.fullmatch(last.top))):
        roles[-1] = "classifier"
    if "classifier" in roles:
        tails = {w.top for w in graph.weights}
        tails -= {w.top for w, tail in zip(graph.weights, plain, strict=True) if not tail}
        end = start = roles.index("classifier")
        while start and graph.weights[start - 1].top in tails:
            start -= 1
        if start:  # in a network of linears alone, the hidden ones are its body
            roles[start:end] = ["classifier"] * (end - start)
    return roles


# --- stages -------------------------------------------------------------------------------------------------


def _stages(graph: _Graph, roles: list[str]) -> list[int | None]:
    """One stage per weight, from timm's `feature_info`, else from numbered siblings that differ in width."""
    stem = {w for path in graph.stems for w in graph.inside(path)}
    outside = [
        w in stem or r in ("patch_embed", "classifier") for w, r in zip(graph.weights, roles, strict=True)
    ]
    found = _feature_stages(graph)
    found = _numbered_stages(graph) if found is None else found
    found = [None if out else stage for out, stage in zip(outside, found, strict=True)]
    order = {stage: i for i, stage in enumerate(sorted({s for s in found if s is not None}))}
    return [None if stage is None else order[stage] for stage in found]


def _feature_stages(graph: _Graph) -> list[int | None] | None:
    """A feature module ends a stage: a weight belongs to the first that ends at or behind it, or to the last.

    Returns None where the metadata can't tell: none, unknown modules, or one module for several stages.
    """
    info = getattr(graph.root, "feature_info", None) or ()
    features = {(f["module"], f.get("reduction")) for f in getattr(info, "info", info)}
    paths = {path for path, _ in features if path and path in graph.modules}
    reductions = {reduction for _, reduction in features}
    if len(reductions) == 1 and paths:  # a plain transformer: blocks at one resolution are no stages
        return [None] * len(graph.weights)
    if len(paths) < 2 or len(features) > len({path for path, _ in features}):
        return None
    position = {path: i for i, path in enumerate(graph.modules)}
    ends = sorted(max(i for p, i in position.items() if f"{p}.".startswith(f"{path}.")) for path in paths)
    owners = [position[weight.path] for weight in graph.weights]
    return [next((k for k, end in enumerate(ends) if owner <= end), len(ends) - 1) for owner in owners]


def _numbered_stages(graph: _Graph) -> list[int | None]:
    """Outermost siblings with numbers in their names are stages if their widths differ."""
    groups: dict[str, dict[str, int]] = {}
    numbered: set[str] = set()
    for path in graph.modules:
        match = _STAGE.fullmatch(path)
        if match and graph.inside(path) and not any(path.startswith(f"{outer}.") for outer in numbered):
            groups.setdefault(match.group(1), {})[path] = int(match.group(2))
            numbered.add(path)
    for group in groups.values():
        counts = [len(graph.inside(path)) for path in group]
        body = min(counts) > 1 and sum(counts) > len(graph.weights) / 2
        if body and len({graph.inside(path)[-1].fan[1] for path in group}) > 1:
            stages = {w: number for path, number in group.items() for w in graph.inside(path)}
            return [stages.get(w) for w in graph.weights]
    return [None] * len(graph.weights)
