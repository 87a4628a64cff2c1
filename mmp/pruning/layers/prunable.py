"""A model's prunable layers, each with the role it plays, its stage and its depth.

:func:`prunable_layers` is the entry. It works on any ``nn.Module``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from mmp.errors import MmpError, nearest
from mmp.pruning.layers.graph import Graph
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.roles import roles_of

# Stages where no feature_info tells: siblings numbered like this, if they differ in width.
_STAGE = re.compile(r"(.*\b(?:\w*(?:layer|stage|level|block)s?))[._]?(\d+)")


def prunable_layers(model: nn.Module) -> tuple[Layer, ...]:
    """List the prunable layers of a model.

    A prunable layer is a weight tensor of two or more dimensions of a convolution, linear or
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
    graph = Graph(model)
    weights, prefix = graph.weights, graph.prefix
    if not weights:
        raise MmpError(
            f"{type(model).__name__} has no prunable layer: no convolution, linear or attention weight of "
            "two or more dimensions; pass the network itself, not a part without weights"
        )
    roles = roles_of(graph)
    stages = stages_of(graph, roles)
    span = max(len(weights) - 1, 1)
    return tuple(
        Layer(
            prefix + w.name,
            (prefix + w.name).rpartition(".")[0],
            role,
            stage,
            i / span,
            tuple(w.parameter.shape),
            getattr(w.owner, "groups", 1) if w.is_conv else 1,
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
            raise MmpError(f"{type(model).__name__} has no parameter {layer.name!r}; {nearest(layer.name, parameters)}")
        parameter = parameters[layer.name]
        if tuple(parameter.shape) != layer.shape:
            raise MmpError(
                f"{type(model).__name__} holds {layer.name!r} in shape {tuple(parameter.shape)}, "
                f"not {layer.shape}; list the layers of this model anew"
            )
        found[layer.name] = parameter
    return found


def stages_of(graph: Graph, roles: list[str]) -> list[int | None]:
    """One stage per weight, from timm's `feature_info`, else from numbered siblings that differ in width."""
    stem = {w for path in graph.stems for w in graph.inside(path)}
    outside = [w in stem or r in ("patch_embed", "classifier") for w, r in zip(graph.weights, roles, strict=True)]
    found = _feature_stages(graph)
    found = _numbered_stages(graph) if found is None else found
    found = [None if out else stage for out, stage in zip(outside, found, strict=True)]
    order = {stage: i for i, stage in enumerate(sorted({s for s in found if s is not None}))}
    return [None if stage is None else order[stage] for stage in found]


def _feature_stages(graph: Graph) -> list[int | None] | None:
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


def _numbered_stages(graph: Graph) -> list[int | None]:
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
