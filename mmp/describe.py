"""What a result says of a pruned model: sparsity in all and per layer, bytes, and the memory that it took."""

from __future__ import annotations

import logging
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmp.heap import return_freed_memory
from mmp.keep import satisfies
from mmp.layers import Layer
from mmp.masks import Masks
from mmp.patterns import UNSTRUCTURED, Pattern
from mmp.ranges import Range
from mmp.sizes import MEGABYTE, Sizes

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


def reset_peak_memory() -> None:
    """Start counting peak memory anew, where the system lets a process do so (Linux)."""
    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        log.debug("peak memory counts from the start of the process")


def peak_memory() -> dict[str, int]:
    """Return peak bytes of this process and, where there is one, of the GPU since :func:`reset_peak_memory`."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
    except OSError:
        match = None
    if match:
        host = int(match.group(1)) * 1024
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"host": host, "cuda": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}
