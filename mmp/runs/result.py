"""What a result says of a pruned model: sparsity in all and per layer, bytes, and the memory that it took."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmp.config.identity import NO_CRITERION, SEARCHED, configuration_of, identity, label, protocol_of
from mmp.config.schema import PruneConfig
from mmp.pruning.layers.layer import Layer
from mmp.pruning.masks import Masks
from mmp.pruning.patterns import UNSTRUCTURED, Pattern
from mmp.pruning.ranges import Range
from mmp.pruning.sizes import MEGABYTE, Sizes
from mmp.pruning.topk import satisfies

log = logging.getLogger(__name__)


def describe(
    model: nn.Module,
    layers: Sequence[Layer],
    ranges: Mapping[str, Range],
    sparsities: Mapping[str, float],
    masks: Masks,
    sizes: Sizes,
    pattern: Pattern = UNSTRUCTURED,
) -> dict[str, Any]:
    """Return what ``result.json`` says of a model's sparsity: in all, over all parameters, and per layer.

    A layer's ``pattern`` is that which its mask satisfies, if there is one at all.
    """
    parameters = sum(p.numel() for p in model.parameters())
    gone, patterned = masks.pruned, pattern != UNSTRUCTURED
    return {
        "parameters": parameters,
        "prunable": masks.total,
        "sparsity": masks.sparsity,
        "sparsity_all": sum(gone.values()) / parameters,
        "bytes": {"dense": sizes.dense, "pruned": sizes.sparse(sum(gone.values()))},
        "masks_hash": masks.digest(),
        "layers": [
            {
                "name": layer.name,
                "role": layer.role,
                "stage": layer.stage,
                "depth": layer.depth,
                "lo": ranges[layer.name].lo,
                "hi": ranges[layer.name].hi,
                "sparsity": sparsities[layer.name],
                "pruned": gone[layer.name],
                "total": layer.size,
                "pattern": str(pattern) if patterned and satisfies(masks[layer.name], pattern, layer.groups) else None,
            }
            for layer in layers
        ],
    }


def summarise(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the final numbers that a dashboard compares runs by, and the names that it groups them by.

    Args:
        result: What ``result.json`` holds, its head included.
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
    """Return the names that open ``result.json``."""
    baseline, settings = config.criterion["name"] != NO_CRITERION, identity(config)
    asked = SEARCHED if config.allocation.name == SEARCHED else config.strategy.name
    return {
        "criterion": config.criterion["name"] if baseline else None,
        "signal": None if baseline else config.signal.name,
        "allocation": config.allocation.name,
        "strategy": label(config),
        "ranges": config.ranges.name,
        "schedule": str(config.schedule.get("_target_", "")).rpartition(".")[2],
        "pattern": None if config.pattern == str(UNSTRUCTURED) else config.pattern,
        "reconstruct": config.reconstruct.name,
        "finetune": config.finetune.name,
        "budget": None if config.match else config.budget.of(asked),
        "budget_megabytes": config.budget.megabytes,
        "protocol": protocol_of(settings),
        "configuration": configuration_of(settings),
    }
