"""Roles: what each prunable weight does in its network.

The evidence is used in this order, and `_RULES` is that order in code:

1. what timm states about its own models (`classifier`, `first_conv`), read off the model;
2. types and structure: groups of a convolution, kernel against stride, which siblings a module has
   (a query beside a key is attention; a sigmoid behind a bottleneck is a channel gate), widths in and out;
3. names, held as data in the tables below, where structure alone cannot tell two cases apart.

``docs/roles.md`` gives the decided rule for each kind of layer with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from mmp.pruning.layers.graph import EMBED, INNER_NETWORK, Graph, Weight

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

# Names from outside timm (Hugging Face's layout: the output projections sit outside the module they serve).
_BY_PATH: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r".*attention\.output\.dense"), "attn_proj"),
    (re.compile(r".*intermediate\.dense"), "mlp_fc1"),
    (re.compile(r".*output\.dense"), "mlp_fc2"),
)


def _classifier(graph: Graph, weight: Weight) -> str | None:
    """The modules that timm states as the classifier."""
    owner = weight.path
    stated = graph.classifiers or ()
    return "classifier" if any(owner == path or owner.startswith(f"{path}.") for path in stated) else None


def _gate(graph: Graph, weight: Weight) -> str | None:
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


def _depthwise(_: Graph, weight: Weight) -> str | None:
    """One filter per channel, wherever it sits."""
    return "depthwise" if weight.is_depthwise else None


def _stem(graph: Graph, weight: Weight) -> str | None:
    """Everything in the module that reads the image; the projection behind a network inside it too."""
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
    """Small networks that compute position biases."""
    return "other" if any(_POSITION.fullmatch(part) for part in weight.parts[:-1]) else None


def _attention(graph: Graph, weight: Weight) -> str | None:
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


def _head(graph: Graph, weight: Weight) -> str | None:
    """Linears that share the head with the classifier."""
    named = any(_HEAD.fullmatch(part) for part in weight.parts)
    # LeViT's second head, for distillation, which timm states for some of its models only.
    heads = graph.heads | {f"{head}_dist" for head in graph.heads}
    return "classifier" if named or (weight.is_linear and weight.top in heads) else None


def _mlp(graph: Graph, weight: Weight) -> str | None:
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


def _downsample(graph: Graph, weight: Weight) -> str | None:
    """What changes resolution or width between blocks or stages, and the projection on a residual branch."""
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
    """Layouts from outside timm, by name."""
    path = weight.path
    return next((role for pattern, role in _BY_PATH if pattern.fullmatch(path)), None)


def _by_type(_: Graph, weight: Weight) -> str | None:
    """A convolution that nothing else claims is a `conv`, anything else `other`."""
    return "conv" if weight.is_conv else "other"


_RULES: tuple[Callable[[Graph, Weight], str | None], ...] = (
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


def roles_of(graph: Graph) -> list[str]:
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
