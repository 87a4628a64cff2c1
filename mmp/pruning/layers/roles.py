"""Roles: the function of each prunable weight in its network.

The evidence is, in this order:

1. timm's metadata of the model (``classifier``, ``first_conv``);
2. types and structure: groups of a convolution, kernel and stride, the children of a module (a query and a key make
   attention, a sigmoid after a bottleneck makes a channel gate), widths in and out;
3. names, in the tables below, where two cases have the same structure.

The first rule of `_RULES` that returns a role decides. ``docs/roles.md`` lists the rule for each kind of layer with its
reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from mmp.pruning.layers.graph import EMBED, INNER_NETWORK, Graph, Weight

# Names of an MLP's slot and class, and names of layers that form an MLP in a block, without a module around them.
_MLP_NAME = re.compile(r"(?:\w+_)?(?:mlp|ffn|feed_?forward|channel_mixer)\w*", re.IGNORECASE)
_MLP_CLASS = re.compile(r"\w*(?:Mlp|MLP|FFN|FeedForward|GLU)")
_MLP_PAIRS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"fc1"}), "fc2"),
    (frozenset({"linear1"}), "linear2"),
    (frozenset({"pwconv1"}), "pwconv2"),
    (frozenset({"pw1"}), "pw2"),
    (frozenset({"f1", "f2"}), "g"),  # StarNet multiplies two expansions
    (frozenset({"in_proj"}), "mlp_out_proj"),  # ViT blocks with one input projection for attention and MLP
)

# Gates without a sigmoid: their last activation is a softmax, or there is none.
_GATE_CLASS = re.compile(r"\w*(?:SelectiveKernelAttn|SplitAttn|SqueezeExcit\w*|SEModule|SEBlock|Eca\w*)")

# Layers that compute position information only, and layers of the head before the classifier.
_POSITION = re.compile(r"cpb_mlp|meta_mlp|pos_?(?:emb|enc)\w*|rel_pos\w*")
_HEAD = re.compile(r"pre_(?:logits|classifier)")
_CLASSIFIER = re.compile(r"classifier|head|fc|logits")  # of a 1x1 convolution: SqueezeNet ends in one

# Layers that change resolution or width between or beside blocks. Types do not tell a 1x1 convolution on the residual
# branch from the first layer of the main branch.
_PATCH_MERGE = re.compile(r"\w*patch_?(?:merg|embed)\w*", re.IGNORECASE)
_DOWNSAMPLE = re.compile(
    r"(?:\w+_)?down(?:sample\w*|s|_?conv)?|shortcut\w*|skip\w*|project|transition\d*|pool|c1x1_w\w*"
)
_DOWNSAMPLE_CLASS = re.compile(r"\w*Downsampl\w*")

# Names in Hugging Face's layout, where the output projections are outside the modules that they belong to.
_BY_PATH: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r".*attention\.output\.dense"), "attn_proj"),
    (re.compile(r".*intermediate\.dense"), "mlp_fc1"),
    (re.compile(r".*output\.dense"), "mlp_fc2"),
)


def _classifier(graph: Graph, weight: Weight) -> str | None:
    """Decide for the modules that timm's metadata names as the classifier."""
    owner = weight.path
    stated = graph.classifiers or ()
    return "classifier" if any(owner == path or owner.startswith(f"{path}.") for path in stated) else None


def _recurrent(_: Graph, weight: Weight) -> str | None:
    """Decide for recurrent layers."""
    return "other" if isinstance(weight.owner, nn.RNNBase | nn.RNNCellBase) else None


def _gate(graph: Graph, weight: Weight) -> str | None:
    """Decide for channel gates such as squeeze-excite: pointwise layers that narrow or keep the width, then a gate."""
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


def _depthwise(_: Graph, weight: Weight) -> str | None:
    """Decide for convolutions with one filter per channel, in any module."""
    return "depthwise" if weight.is_depthwise else None


def _stem(graph: Graph, weight: Weight) -> str | None:
    """Decide for the module that reads the image, and for a projection after a network inside that module."""
    owner = weight.path
    for path, role in graph.stems.items():
        if owner == path or owner.startswith(f"{path}."):
            return role
    for path, module, slot in graph.around(weight):
        if slot == INNER_NETWORK or isinstance(module, nn.ModuleList):
            return None
        if path and INNER_NETWORK in graph.slots(path) and graph.called(path, EMBED):
            return "patch_embed"
    return None


def _position(_: Graph, weight: Weight) -> str | None:
    """Decide for small networks that compute position biases."""
    return "other" if any(_POSITION.fullmatch(part) for part in weight.parts[:-1]) else None


def _attention(graph: Graph, weight: Weight) -> str | None:
    """Decide for the inputs and outputs of attention: a module with a query and a key."""
    for path, _, slot in graph.around(weight):
        slots = graph.attention_slots(path)
        if slots is None:
            if isinstance(graph.modules[path], nn.MultiheadAttention):
                return "attn_proj" if slot == "out_proj" else "attn_qkv"
            continue
        inputs, outputs = slots
        return "attn_qkv" if slot in inputs else "attn_proj" if slot in outputs else None
    return None


def _head(graph: Graph, weight: Weight) -> str | None:
    """Decide for linear layers in the same head as the classifier."""
    named = any(_HEAD.fullmatch(part) for part in weight.parts)
    # LeViT's second head, for distillation, is in timm's metadata of some models only.
    heads = graph.heads | {f"{head}_dist" for head in graph.heads}
    return "classifier" if named or (weight.is_linear and weight.top in heads) else None


def _mlp(graph: Graph, weight: Weight) -> str | None:
    """Decide for the pointwise layers of an MLP: the layer that returns to the input's width is fc2, all others fc1.

    Inner modules are examined before those around them, so every expert in a mixture of MLPs is an MLP.
    """
    if not weight.is_pointwise:
        return None
    for path, _, slot in graph.around(weight):
        if not path:
            break
        for rule in (_mlp_by_name, _mlp_by_widths, _mlp_by_slots):
            if role := rule(graph, weight, path, slot):
                return role
    return None


def _mlp_by_name(graph: Graph, weight: Weight, path: str, _: str) -> str | None:
    """Decide for a module that is called an MLP; if no layer returns to the input's width, the last layer is fc2."""
    own, kind = path.rpartition(".")[2], type(graph.modules[path]).__name__
    inner = [w for w in graph.inside(path) if w.is_pointwise and not w.is_depthwise]
    if len(inner) < 2 or not (_MLP_NAME.fullmatch(own) or _MLP_CLASS.fullmatch(kind)):
        return None
    width = inner[0].fan[0]
    back = [w for w in inner if w.fan[1] == width and w.fan[0] != width] or inner
    return "mlp_fc2" if weight is back[-1] else "mlp_fc1"


def _mlp_by_widths(graph: Graph, weight: Weight, path: str, _: str) -> str | None:
    """Decide for a module with exactly two linear layers, the second with the widths of the first in reverse."""
    linears = [w for w in graph.inside(path) if w.is_linear]
    if isinstance(graph.modules[path], nn.ModuleList) or weight not in linears or len(linears) != 2:
        return None
    if linears[0].fan != linears[1].fan[::-1]:
        return None
    return "mlp_fc2" if weight is linears[1] else "mlp_fc1"


def _mlp_by_slots(graph: Graph, _: Weight, path: str, slot: str) -> str | None:
    """Decide for a block that holds the layers of an MLP under known names."""
    slots = graph.slots(path)
    for first, last in _MLP_PAIRS:
        if first <= slots and last in slots and slot in first | {last}:
            return "mlp_fc2" if slot == last else "mlp_fc1"
    return None


def _downsample(graph: Graph, weight: Weight) -> str | None:
    """Decide for layers that change resolution or width between blocks or stages, and on a residual branch."""
    names = weight.parts[-1:]
    for path, module, _ in graph.around(weight):
        own = path.rpartition(".")[2]
        if not path or own == INNER_NETWORK:
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


def _by_path(_: Graph, weight: Weight) -> str | None:
    """Decide by name for layouts outside timm."""
    path = weight.path
    return next((role for pattern, role in _BY_PATH if pattern.fullmatch(path)), None)


def _by_type(_: Graph, weight: Weight) -> str | None:
    """Decide for all remaining weights: ``conv`` for weights of convolutions, ``other`` for all others."""
    return "conv" if weight.is_conv else "other"


_RULES: tuple[Callable[[Graph, Weight], str | None], ...] = (
    _classifier,
    _recurrent,
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


def roles_of(graph: Graph) -> list[str]:
    """Return the role of every weight of a graph, in order.

    The first rule that decides sets a weight's role. Then the linear layers directly before the classifier become
    ``classifier``, too.
    """
    roles = [next(role for rule in _RULES if (role := rule(graph, weight))) for weight in graph.weights]
    plain = [w.is_linear and role == "other" for w, role in zip(graph.weights, roles, strict=True)]
    last = graph.weights[-1]
    if graph.classifiers is None and (plain[-1] or (last.is_pointwise and _CLASSIFIER.fullmatch(last.top))):
        roles[-1] = "classifier"
    elif graph.classifiers is None and graph.only_linear is not None:
        place = graph.weights.index(graph.only_linear)
        roles[place] = "classifier" if plain[place] else roles[place]
    if "classifier" in roles:
        tails = {w.top for w in graph.weights}
        tails -= {w.top for w, tail in zip(graph.weights, plain, strict=True) if not tail}
        end = start = roles.index("classifier")
        while start and graph.weights[start - 1].top in tails:
            start -= 1
        if start:  # in a network of linear layers only, the hidden ones are its body
            roles[start:end] = ["classifier"] * (end - start)
    return roles
