"""The measurements of an export: the content of export.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmp.export.latency import Latency

SCHEMA_VERSION = 4


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy on the test split.

    Attributes:
        file: Of the file in its engine, a fraction in [0, 1].
        pytorch: Of the same model in PyTorch, as the run has measured it, a fraction.
        difference: The first minus the second, in percentage points.
        samples: Number of test images.
    """

    file: float
    pytorch: float
    difference: float
    samples: int


@dataclass(frozen=True)
class FileSizes:
    """Sizes in bytes.

    Attributes:
        dense_fp32: Of the run's weights, dense, in float32.
        file: Of the exported files.
        compressed: Of the exported files after zstd.
        dense_file: Of the dense model, exported in the same way.
        dense_compressed: Of these files after zstd.
    """

    dense_fp32: int
    file: int
    compressed: int
    dense_file: int
    dense_compressed: int


@dataclass(frozen=True)
class NetworkSizes:
    """What the network of a file has and computes, and the dense network.

    Attributes:
        parameters: Number of parameters.
        dense_parameters: The same of the dense network.
        multiply_adds: Multiply-adds of linear layers and convolutions for one image.
        dense_multiply_adds: The same of the dense network.
    """

    parameters: int
    dense_parameters: int
    multiply_adds: int
    dense_multiply_adds: int


@dataclass(frozen=True)
class Channels:
    """The channels that nothing reads.

    Attributes:
        removed: Number of sets of channels that the file lacks, and of all sets, by the first layer of their group.
        kept: Why sets of a group are in the file although nothing reads them, by the first layer of the group.
    """

    removed: dict[str, Sequence[int]]
    kept: dict[str, str]


@dataclass(frozen=True)
class WeightCounts:
    """Weights of the prunable layers, counted in the file. Fractions are of all prunable weights of the dense network.

    Attributes:
        prunable: All of them, in the dense network.
        kept: Those that the masks keep.
        removed: Those that the masks keep and that the file lacks, since their channels are removed.
        nonzero: Those that are not zero in the file.
        rounded_to_zero: Those that the masks keep and that are zero in the file.
        sparsity: Fraction that is zero in the file or removed.
        sparsity_of_masks: Fraction that the masks prune.
        types: The data types that the weights are stored in.
    """

    prunable: int
    kept: int
    removed: int
    nonzero: int
    rounded_to_zero: int
    sparsity: float
    sparsity_of_masks: float
    types: list[str]


@dataclass(frozen=True)
class ExportResult:
    """Everything that is known about one exported model; the attributes are the keys of export.json.

    Attributes:
        schema_version: `SCHEMA_VERSION` of the mmp that wrote it.
        target: Name of the target.
        run: Name of the run.
        files: SHA-256 of each file, by file name.
        engine: Name of the engine that executes the file.
        model: The arguments that create the model in timm; of a user's class, its address, its arguments as Python
            code, its file, and a hash of its source.
        images: Channels, size and normalisation of the images, and as ``recipe`` how to prepare them.
        classes: Names of the classes, in the order of the logits; None if they are unknown.
        accuracy: Test accuracy of the file and of the run.
        logits_differ: Largest difference of a logit from PyTorch's, divided by the largest logit.
        network: Parameters and multiply-adds of the file's network and of the dense network.
        channels: The channels that were removed, and those that could not be.
        bytes: Sizes of the file and of the dense model.
        weights: Zeros in the file.
        latency: Latency against the dense model, for each batch size; empty if not measured.
        threads: Number of threads of the engine.
        processor: Name of the processor.
        dense_weights: Where the weights of the dense model come from.
        origin: Checksums of the run's files and images, and versions of packages; if one changes, the export is
            repeated.
        versions: Versions of Python and of packages.
        command: The command line that repeats the run; empty if it is unknown.
        masks_hash: Digest of the masks that it makes.
    """

    schema_version: int
    target: str
    run: str
    files: dict[str, str]
    engine: str
    model: dict[str, Any]
    images: dict[str, Any]
    classes: list[str] | None
    accuracy: Accuracy
    logits_differ: float
    network: NetworkSizes
    channels: Channels
    bytes: FileSizes
    weights: WeightCounts
    latency: list[Latency]
    threads: int
    processor: str
    dense_weights: str
    origin: dict[str, Any]
    versions: dict[str, str]
    command: str = ""
    masks_hash: str = ""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ExportResult:
        """Return the result that :meth:`to_dict` has turned into plain data.

        Raises:
            KeyError, TypeError: if a key is missing, unknown, or of another kind.
        """
        parts = {
            "accuracy": Accuracy(**content["accuracy"]),
            "network": NetworkSizes(**content["network"]),
            "channels": Channels(**content["channels"]),
            "bytes": FileSizes(**content["bytes"]),
            "weights": WeightCounts(**content["weights"]),
            "latency": [Latency(**one) for one in content["latency"]],
        }
        return cls(**{**content, **parts})

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for export.json."""
        return asdict(self)
