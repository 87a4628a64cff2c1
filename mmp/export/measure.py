"""Measurements on an exported file: zeros, accuracy, bytes and latency."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.export.latency import Latency, compare_latency
from mmp.export.result import FileSizes, NetworkSizes, WeightCounts
from mmp.export.targets import Engine, Exportable
from mmp.pruning.channels.costs import Costs, positions_of
from mmp.pruning.masks import Masks

BATCHES = (1, 32)  # batch sizes at which latency is measured
_ZSTD_LEVEL = 10


def weight_counts(weights: dict[str, Tensor], masks: Masks, where: str, whole: Masks | None = None) -> WeightCounts:
    """Count the weights that are not zero in a file, and compare them with the masks.

    Args:
        weights: The weight under each mask, read from the file.
        masks: The masks of the file's network.
        where: A description of the file, for the error message.
        whole: The masks of the network with all channels; None if the file has all of them.

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
    whole = masks if whole is None else whole
    kept, kept_in_file = _kept(whole), _kept(masks)
    return WeightCounts(
        prunable=whole.total,
        kept=kept,
        removed=kept - kept_in_file,
        nonzero=nonzero,
        rounded_to_zero=kept_in_file - nonzero,
        sparsity=1 - nonzero / max(whole.total, 1),
        sparsity_of_masks=whole.sparsity,
        types=sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()}),
    )


def _kept(masks: Masks) -> int:
    return masks.total - sum(masks.pruned.values())


def network_sizes(model: nn.Module, dense: nn.Module, image: Tensor) -> NetworkSizes:
    """Return the parameters and multiply-adds of a network and of the dense network.

    Args:
        model: The network.
        dense: The dense network.
        image: One image, (1, C, H, W).
    """
    costs, dense_costs = (Costs.of(one, (), positions_of(one, image)) for one in (model, dense))
    return NetworkSizes(
        parameters=costs.parameters,
        dense_parameters=dense_costs.parameters,
        multiply_adds=costs.multiply_adds,
        dense_multiply_adds=dense_costs.multiply_adds,
    )


def accuracy_of(engine: Engine, batches: Iterable[Sequence[Tensor]]) -> tuple[float, int]:
    """Return the top-1 accuracy of an engine as a fraction, and the number of images.

    Args:
        engine: The engine.
        batches: Images (B, C, H, W) and labels (B,).
    """
    right = samples = 0
    for images, labels in batches:
        right += int((engine(images).argmax(1) == labels).sum())
        samples += len(labels)
    return right / samples, samples


def file_sizes(weights: Path, paths: Sequence[Path], dense_paths: Sequence[Path]) -> FileSizes:
    """Return the sizes of an export.

    Args:
        weights: The file of the run's dense float32 weights.
        paths: The exported files.
        dense_paths: The files of the dense model, exported in the same way.
    """
    return FileSizes(
        dense_fp32=total_size([weights]),
        file=total_size(paths),
        compressed=compressed_size(paths),
        dense_file=total_size(dense_paths),
        dense_compressed=compressed_size(dense_paths),
    )


def total_size(paths: Iterable[Path]) -> int:
    """Return the size of files in bytes."""
    return sum(path.stat().st_size for path in paths)


def compressed_size(paths: Iterable[Path]) -> int:
    """Return the size of files in bytes after compression by zstd."""
    import zstandard

    written = 0
    for path in paths:
        with path.open("rb") as file:
            written += sum(map(len, zstandard.ZstdCompressor(level=_ZSTD_LEVEL).read_to_iter(file)))
    return written


def latencies(engine: Engine, dense: Engine, source: Exportable, seconds: float) -> list[Latency]:
    """Return the latency of a file against the dense model, for each batch size of `BATCHES`.

    Args:
        engine: The engine with the file.
        dense: The engine with the dense model, exported in the same way.
        source: The exported model, for the shape of its images.
        seconds: Seconds to spend per batch size; with 0, nothing is measured.
    """
    if not seconds:
        return []
    shape = source.images.shape[1:]
    batches = [torch.randn(size, *shape, generator=torch.Generator().manual_seed(0)) for size in BATCHES]
    return [compare_latency(engine, dense, images, seconds) for images in batches]


def fill_pruned(model: nn.Module, masks: Masks) -> None:
    """Replace pruned weights, in place, by random values with the standard deviation of the kept ones.

    Each weight tensor is then scaled to its norm before, because activations would otherwise grow from layer to layer
    and overflow in deep networks. So the kept weights shrink, too.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, mask in masks.items():
            weight = model.get_parameter(name)
            kept = weight[mask]
            deviation = (float(kept.std()) if len(kept) > 1 else 0.0) or weight[0].numel() ** -0.5
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
