"""A model's prunable layers, each with its role, stage and depth, for any ``nn.Module``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from mmp.errors import MmpError, nearest
from mmp.pruning.layers.coverage import coverage
from mmp.pruning.layers.graph import Graph
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.roles import roles_of

# Names of numbered siblings; they are stages if there is no feature_info and their widths differ.
_STAGE = re.compile(r"(.*\b(?:\w*(?:layer|stage|level|block)s?))[._]?(\d+)")


def prunable_layers(model: nn.Module) -> tuple[Layer, ...]:
    """Return the prunable layers of a model.

    A prunable layer is a weight tensor of two or more dimensions of a convolution, linear, attention or recurrent
    module. Biases, norm scales, embeddings, position tables, tokens, latents and layer-scale gains are never prunable.
    Frozen weights are. A warning in the log names what else stays dense, such as weights under a parametrization, if
    that is 5 % of the parameters or more; see :func:`mmp.pruning.layers.coverage.coverage`.

    Args:
        model: Any module; its parameters may be on any device, ``meta`` included. In a wrapper with a single child
            (``torch.compile``, a ``LightningModule``), the layers are those of the child.

    Returns:
        The layers in ``named_parameters`` order, which is close to the order of execution but may differ from it.

    Raises:
        MmpError: if the model has no prunable layer, a lazy layer has no shape yet, or a module is quantized.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        >>> for layer in prunable_layers(model):
        ...     print(layer.name, layer.role, layer.shape, layer.size)
        0.weight stem (8, 3, 3, 3) 216
        3.weight classifier (10, 288) 2880
    """
    layers = find_layers(model)
    coverage(model, layers).warn(type(model).__name__)
    return layers


def find_layers(model: nn.Module) -> tuple[Layer, ...]:
    """Return the prunable layers of a model as :func:`prunable_layers` does, without its warning."""
    graph = Graph(model)
    weights, prefix = graph.weights, graph.prefix
    if not weights:
        missed = coverage(model, ())
        raise MmpError(
            f"{type(model).__name__} has no prunable layer: no convolution, linear, attention or recurrent weight of "
            "two or more dimensions; "
            + (missed.reasons(missed.missed) or "pass the network itself, not a part without weights")
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
    """Return the parameters of layers, by layer name.

    Args:
        model: The model of the layers, or another one with the same ``state_dict`` keys.
        layers: Its prunable layers, or some of them.

    Returns:
        The model's own parameters, not copies, in the order of ``layers``.

    Raises:
        MmpError: if the model has no parameter of a layer's name, or one of another shape.
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
                f"not {layer.shape}; call prunable_layers on this model"
            )
        found[layer.name] = parameter
    return found


def stages_of(graph: Graph, roles: list[str]) -> list[int | None]:
    """Return the stage of every weight, from 0; None for weights outside of stages.

    Stages come from timm's ``feature_info``, else from numbered siblings whose widths differ.

    Args:
        graph: The model.
        roles: The role of every weight.
    """
    stem = {w for path in graph.stems for w in graph.inside(path)}
    outside = [w in stem or r in ("patch_embed", "classifier") for w, r in zip(graph.weights, roles, strict=True)]
    found = _feature_stages(graph)
    found = _numbered_stages(graph) if found is None else found
    found = [None if out else stage for out, stage in zip(outside, found, strict=True)]
    order = {stage: i for i, stage in enumerate(sorted({s for s in found if s is not None}))}
    return [None if stage is None else order[stage] for stage in found]


def _feature_stages(graph: Graph) -> list[int | None] | None:
    """Return the stage of every weight from timm's ``feature_info``, where every feature module ends a stage.

    A weight belongs to the first stage that does not end before it, or to the last stage. The result is None if
    there is no metadata, if it names unknown modules, or if one module ends several stages.
    """
    info = getattr(graph.root, "feature_info", None) or ()
    features = {(f["module"], f.get("reduction")) for f in getattr(info, "info", info)}
    paths = {path for path, _ in features if path and path in graph.modules}
    reductions = {reduction for _, reduction in features}
    if len(reductions) == 1 and paths:  # a plain transformer: blocks of the same resolution are no stages
        return [None] * len(graph.weights)
    if len(paths) < 2 or len(features) > len({path for path, _ in features}):
        return None
    position = {path: i for i, path in enumerate(graph.modules)}
    ends = sorted(max(i for p, i in position.items() if f"{p}.".startswith(f"{path}.")) for path in paths)
    owners = [position[weight.path] for weight in graph.weights]
    return [next((k for k, end in enumerate(ends) if owner <= end), len(ends) - 1) for owner in owners]


def _numbered_stages(graph: Graph) -> list[int | None]:
    """Return the stage of every weight from outermost siblings with numbers in their names, if their widths differ."""
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
