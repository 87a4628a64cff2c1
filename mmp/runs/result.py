"""The content of ``result.json``: its head, sparsity in total and per layer, and a summary for dashboards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmp.config.identity import configuration_of, identity, label, protocol_of, settings_of
from mmp.config.schema import NO_CRITERION, SEARCHED, PruneConfig
from mmp.pruning.layers.coverage import coverage
from mmp.pruning.layers.layer import Layer
from mmp.pruning.masks import Masks
from mmp.pruning.patterns import UNSTRUCTURED, Pattern
from mmp.pruning.sizes import MEGABYTE, Sizes
from mmp.pruning.topk import satisfies
from mmp.runs.allocation import Allocation


def describe_sparsity(
    model: nn.Module, layers: Sequence[Layer], allocation: Allocation, masks: Masks, pattern: Pattern
) -> dict[str, Any]:
    """Return the entries of ``result.json`` about sparsity: of prunable weights, of all parameters, and per layer.

    Args:
        model: The dense model.
        layers: Its prunable layers.
        allocation: The range and the sparsity of every layer.
        masks: The masks made from them.
        pattern: The pattern of the run; a layer's entry names it only if the layer's mask satisfies it.
    """
    parameters = sum(p.numel() for p in model.parameters())
    pruned, patterned = masks.pruned, pattern != UNSTRUCTURED
    sizes = Sizes.of(model, layers)
    return {
        "parameters": parameters,
        "prunable": masks.total,
        "sparsity": masks.sparsity,
        "sparsity_all": sum(pruned.values()) / parameters,
        "bytes": {"dense": sizes.dense, "pruned": sizes.sparse(sum(pruned.values()))},
        "masks_hash": masks.digest(),
        "uncovered": coverage(model, layers).to_dict(),
        "layers": [
            {
                "name": layer.name,
                "role": layer.role,
                "stage": layer.stage,
                "depth": layer.depth,
                "lo": allocation.ranges[layer.name].lo,
                "hi": allocation.ranges[layer.name].hi,
                "sparsity": allocation.sparsities[layer.name],
                "pruned": pruned[layer.name],
                "total": layer.size,
                "pattern": str(pattern) if patterned and satisfies(masks[layer.name], pattern, layer.groups) else None,
            }
            for layer in layers
        ],
    }


def summarise(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the final numbers by which a dashboard compares runs, and the names by which it groups them.

    Args:
        result: The content of ``result.json``, its head included.
    """
    final = result["accuracy"]["finetuned"]
    per_layer = {f"sparsity/{layer['name']}": layer["pruned"] / layer["total"] for layer in result["layers"]}
    return {
        "sparsity": result["sparsity"],
        "sparsity_all": result["sparsity_all"],
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
        "protocol": protocol_of(decisive),
        "configuration": configuration_of(decisive),
    }
