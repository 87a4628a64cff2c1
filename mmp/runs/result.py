"""The content of ``result.json``: its head, sparsity in total and per layer, and a summary for dashboards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmp.config.identity import configuration_of, identity, label, protocol_of, settings_of
from mmp.config.schema import NO_CRITERION, SEARCHED, PruneConfig
from mmp.pruning.channels.structure import WholeChannels
from mmp.pruning.layers.coverage import coverage
from mmp.pruning.layers.layer import Layer
from mmp.pruning.layers.prunable import find_layers
from mmp.pruning.masks import Masks
from mmp.pruning.patterns import UNSTRUCTURED, Channels, Pattern
from mmp.pruning.sizes import MEGABYTE, Sizes
from mmp.pruning.structure import Structure
from mmp.pruning.topk import satisfies
from mmp.runs.allocation import Allocation


def describe_sparsity(model: nn.Module, structure: Structure, allocation: Allocation, masks: Masks) -> dict[str, Any]:
    """Return the entries of ``result.json`` about sparsity: of prunable weights, of all parameters, and per layer.

    With ``pattern=channels``, an entry per layer is one of a group of channels, its ``pruned`` and ``total`` are sets
    of channels, and the other entries are those of the smaller network: ``sparsity_all`` is the share of the parameters
    that is removed, ``bytes`` has no masks, and ``multiply_adds`` are those of one image.

    Args:
        model: The dense model.
        structure: What is pruned as a whole.
        allocation: The range and the sparsity of every layer.
        masks: The masks made from them. A layer's entry names a pattern only if the layer's mask satisfies it.
    """
    layers = find_layers(model)
    parameters, sizes = sum(p.numel() for p in model.parameters()), Sizes.of(model, layers)
    pruned = masks.pruned
    entries = {
        "parameters": parameters,
        "prunable": masks.total,
        "sparsity": masks.sparsity,
        "sparsity_all": sum(pruned.values()) / parameters,
        "bytes": {"dense": sizes.dense, "pruned": sizes.sparse(sum(pruned.values()))},
        "masks_hash": masks.digest(),
        "uncovered": coverage(model, layers).to_dict(),
    }
    if isinstance(structure, WholeChannels):
        return {**entries, **_of_channels(structure, allocation)}
    found = (_of_layer(layer, structure.pattern, masks[layer.name], pruned[layer.name]) for layer in layers)
    return {
        **entries,
        "layers": [{**_of_range(x, allocation), **entry} for x, entry in zip(layers, found, strict=True)],
    }


def _of_layer(layer: Layer, pattern: Pattern | Channels, mask: Tensor, pruned: int) -> dict[str, Any]:
    patterned = isinstance(pattern, Pattern) and pattern != UNSTRUCTURED and satisfies(mask, pattern, layer.groups)
    return {"pruned": pruned, "total": layer.size, "pattern": str(pattern) if patterned else None}


def _of_range(layer: Layer, allocation: Allocation) -> dict[str, Any]:
    return {
        "name": layer.name,
        "role": layer.role,
        "stage": layer.stage,
        "depth": layer.depth,
        "lo": allocation.ranges[layer.name].lo,
        "hi": allocation.ranges[layer.name].hi,
        "sparsity": allocation.sparsities[layer.name],
    }


def _of_channels(structure: WholeChannels, allocation: Allocation) -> dict[str, Any]:
    removed, costs = structure.removed(allocation.sparsities), structure.costs
    left = costs.parameters_left(removed)
    return {
        "sparsity_all": 1 - left / costs.parameters,
        "parameters_left": left,
        "bytes": {"dense": costs.bytes, "pruned": costs.bytes_left(removed)},
        "multiply_adds": {"dense": costs.multiply_adds, "pruned": costs.multiply_adds_left(removed)},
        "layers": [
            {
                **_of_range(layer, allocation),
                "pruned": count,
                "total": layer.shape[0],
                "pattern": str(structure.pattern) if count else None,
            }
            for layer, count in zip(structure.layers, removed, strict=True)
        ],
    }


def summarise(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the final numbers by which a dashboard compares runs, and the names by which it groups them.

    Args:
        result: The content of ``result.json``, its head included.

    Returns:
        The numbers. ``sparsity/NAME`` is the share of weights that a layer loses, or with ``pattern=channels`` the
        share of sets that a group loses.
    """
    final = result["accuracy"]["finetuned"]
    per_layer = {f"sparsity/{layer['name']}": layer["pruned"] / layer["total"] for layer in result["layers"]}
    return {
        "sparsity": result["sparsity"],
        "sparsity_all": result["sparsity_all"],
        **_left(result),
        "accuracy": final["test"],
        "val_accuracy": final["validation"],
        "drop": result["drop"],
        "pruned_accuracy": result["accuracy"]["pruned"]["test"],
        "dense_accuracy": result["accuracy"]["dense"]["test"],
        "size_mb": result["bytes"]["pruned"] / MEGABYTE,
        "signal": result["criterion"] or result["signal"],
        **{key: result[key] for key in ("strategy", "model", "data", "seed")},
        **per_layer,
    }


def _left(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the smaller network of a run with whole channels has: its parameters, its share of multiply-adds."""
    if "multiply_adds" not in result:
        return {}
    costs = result["multiply_adds"]
    return {"parameters_left": result["parameters_left"], "multiply_adds": costs["pruned"] / costs["dense"]}


def head_of(config: PruneConfig) -> dict[str, Any]:
    """Return the settings at the head of ``result.json`` and ``status.json``."""
    baseline = config.criterion["name"] != NO_CRITERION
    settings = settings_of(config)
    decisive = identity(settings)
    strategy = SEARCHED if config.allocation.name == SEARCHED else config.strategy.name
    return {
        "criterion": config.criterion["name"] if baseline else None,
        "signal": None if baseline else config.signal.name,
        "allocation": config.allocation.name,
        "strategy": label(settings),
        "ranges": config.ranges.name,
        "schedule": str(config.schedule.get("_target_", "")).rpartition(".")[2],
        "pattern": None if config.pattern == str(UNSTRUCTURED) else config.pattern,
        "reconstruct": config.reconstruct.name,
        "finetune": config.finetune.name,
        "budget": None if config.match else config.budget.of(strategy),
        "budget_megabytes": config.budget.megabytes,
        **({} if config.budget.macs is None else {"budget_macs": config.budget.macs}),
        "protocol": protocol_of(decisive),
        "configuration": configuration_of(decisive),
    }
