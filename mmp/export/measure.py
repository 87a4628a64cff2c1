"""What is measured on an exported file: zeros, accuracy, bytes, latency."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.export.latency import compare_latency
from mmp.export.targets import Engine, Exportable
from mmp.pruning.masks import Masks

BATCHES = (1, 32)  # that latency is measured at
_ZSTD_LEVEL = 10


def count_weights(weights: dict[str, Tensor], masks: Masks, where: str) -> dict[str, Any]:
    """Count the weights of a file that are not zero, and compare them with the masks.

    Args:
        weights: What lies in the file under each mask.
        masks: The masks.
        where: What the file is, for the message.

    Raises:
        MmpError: if a weight that the masks prune is not zero in the file.
    """
    nonzero = 0
    for name, mask in masks.items():
        alive = weights[name] != 0
        revived = int((alive & ~mask).count_nonzero())
        if revived:
            raise MmpError(
                f"{where}: {revived} pruned weights of {name!r} are not zero in the file; nothing was written"
            )
        nonzero += int(alive.count_nonzero())
    kept = masks.total - sum(masks.pruned.values())
    return {
        "prunable": masks.total,
        "kept": kept,
        "nonzero": nonzero,
        "rounded_to_zero": kept - nonzero,
        "sparsity": 1 - nonzero / max(masks.total, 1),
        "sparsity_of_masks": masks.sparsity,
        "types": sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()}),
    }


def accuracy_of(engine: Engine, batches: Iterable[Sequence[Tensor]]) -> tuple[float, int]:
    """Return the top-1 accuracy in [0, 1] of an engine, and the number of images that it has seen."""
    right = samples = 0
    for images, labels in batches:
        right += int((engine(images).argmax(1) == labels).sum())
        samples += len(labels)
    return right / samples, samples


def size(paths: Iterable[Path]) -> int:
    """Return the bytes of files."""
    return sum(path.stat().st_size for path in paths)


def compressed_size(paths: Iterable[Path]) -> int:
    """Return how many bytes zstd makes of files."""
    import zstandard

    written = 0
    for path in paths:
        with path.open("rb") as file:
            written += sum(map(len, zstandard.ZstdCompressor(level=_ZSTD_LEVEL).read_to_iter(file)))
    return written


def fill_pruned(model: nn.Module, masks: Masks) -> None:
    """Give pruned weights random values like those that were kept, then each weight tensor the norm that it had.

    So kept weights shrink, too. Else numbers would grow from layer to layer, in deep networks beyond those of float32.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, mask in masks.items():
            weight = model.get_parameter(name)
            deviation = float(weight[mask].std().nan_to_num(0.0)) or weight[0].numel() ** -0.5
            noise = deviation * torch.randn(weight.shape, generator=generator)
            filled, norm = torch.where(mask, weight, noise), weight.norm()
            weight.copy_(filled * (norm / filled.norm()) if norm else filled)


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def latencies(engine: Engine, dense: Engine, source: Exportable, seconds: float) -> list[dict[str, Any]]:
    """Return the latency of a file against that of the dense model, for each of `BATCHES`.

    Args:
        engine: What runs the file.
        dense: What runs the dense model, exported alike.
        source: What is exported, for the size of its images.
        seconds: How long to time each batch size; 0 measures nothing.
    """
    if not seconds:
        return []
    shape = source.images.shape[1:]
    batches = [torch.randn(size, *shape, generator=torch.Generator().manual_seed(0)) for size in BATCHES]
    return [compare_latency(engine, dense, images, seconds).to_dict() for images in batches]
