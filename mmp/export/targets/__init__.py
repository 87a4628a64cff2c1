"""Targets: the kinds of files that a pruned model is exported to.

A target is one class in one file, and a line in `TARGETS`. It implements :class:`Target` and needs no base class.
:mod:`mmp.export` measures and describes the files that it writes. A target gets the model without the channels that
nothing reads. With an attribute ``whole = True``, it gets the model with all channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmp.config.schema import ModelConfig
from mmp.errors import MmpError, nearest
from mmp.pruning.channels.removal import Removal
from mmp.pruning.layers.eval_mode import forget_cached
from mmp.pruning.masks import Masks

TARGETS = {
    "onnx": "mmp.export.targets.onnx_fp32:Onnx",
    "onnx_int8": "mmp.export.targets.onnx_int8:OnnxInt8",
    "openvino": "mmp.export.targets.openvino_ir:OpenVino",
    "executorch": "mmp.export.targets.executorch_xnnpack:ExecuTorch",
    "sparse": "mmp.export.targets.sparse:Sparse",
    "shrunk": "mmp.export.targets.shrunk:Shrunk",
}

Engine = Callable[[Tensor], Tensor]
"""Executes a file: maps images (B, C, H, W) on the CPU, with any batch size B, to logits (B, classes)."""


@dataclass(frozen=True)
class Exportable:
    """A model to export.

    Attributes:
        config: The configuration of the timm model.
        model: The model with its weights, in eval mode, on the CPU.
        masks: Its masks; true where a weight is kept.
        batches: Normalised calibration images (B, C, H, W). They can be iterated over several times.
        scratch: A folder for intermediate files of this model only.
        classes: Names of the classes, in the order of the logits; None if they are unknown.
        preparation: Channels, size and normalisation of the images, and as ``recipe`` how to prepare them.
        removal: The channels that were removed from the model and its masks, because nothing reads them.
    """

    config: ModelConfig
    model: nn.Module
    masks: Masks
    batches: Iterable[Tensor]
    scratch: Path
    classes: Sequence[str] | None = None
    preparation: Mapping[str, Any] = field(default_factory=dict)
    removal: Removal = field(default_factory=Removal)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.title

    @cached_property
    def images(self) -> Tensor:
        """The first three calibration images, to try a file with."""
        return next(iter(self.batches))[:3]

    def ready_to_trace(self) -> nn.Module:
        """Return the model after a forward pass in eval mode, so that the values it caches become constants in a file.

        LeViT caches its attention biases in this way. Without the forward pass, its file gathers them again for every
        image, and the latencies of two files can only be compared if both do or neither does.
        """
        forget_cached(self.model)
        self.model.eval()
        with torch.no_grad():
            self.model(self.images)
        return self.model

    def with_weights(self, model: nn.Module, scratch: Path) -> Exportable:
        """Return the same architecture with other weights, with all channels and without masks.

        Args:
            model: The model with the other weights.
            scratch: A folder for its intermediate files.
        """
        return replace(self, model=model.eval(), masks=Masks({}), scratch=scratch, removal=Removal())


class Target(Protocol):
    """A kind of file, and the engine that executes it.

    Attributes:
        name: The name on the command line.
        files: Names of the files that it writes; the engine opens the first.
        engine: The name of the engine, for people.
        packages: Packages that it imports, besides those that mmp always needs.
        extra: The extras of mmp that install these packages.
        exact: Whether the file computes the same as the model, up to rounding in float32.
    """

    name: str
    files: tuple[str, ...]
    engine: str
    packages: tuple[str, ...]
    extra: str
    exact: bool

    def write(self, source: Exportable, path: Path) -> None:
        """Write the files of a model: the first to ``path``, the others beside it.

        Raises:
            MmpError: if the target does not support the model.
        """

    def open(self, path: Path, source: Exportable) -> Engine:
        """Return the engine with the file loaded.

        Raises:
            MmpError: if the engine does not support the file.
        """

    def weights(self, path: Path, source: Exportable) -> dict[str, Tensor]:
        """Return the weight under each mask, read from the file, in the shape of the mask and of any data type.

        Raises:
            MmpError: if a weight is not in the file.
        """

    def usage(self, source: Exportable) -> str:
        """Return at most five lines of Python that load the file and run it on ``images``."""


def load_target(name: str) -> Target:
    """Return a target by name.

    Raises:
        MmpError: if there is no such target, or a package that it needs is missing.
    """
    if name not in TARGETS:
        raise MmpError(f"target={name}: no such target; {nearest(name, TARGETS)}")
    target: Target = resolve_name(TARGETS[name])()
    missing = [package for package in (*target.packages, "zstandard") if find_spec(package) is None]
    if missing:
        raise MmpError(f"target={name} needs {' and '.join(missing)}: pip install 'mmp[{target.extra}]'")
    return target


def logit_difference(engine: Engine, source: Exportable, target: Target) -> float:
    """Run a file on one image and on three, and compare its logits with the model's.

    Returns:
        The largest absolute difference of a logit, divided by the largest absolute logit of the model.

    Raises:
        MmpError: if the engine fails, or returns another shape or a value that is not finite, or if the target is exact
            and its logits differ.
    """
    with torch.inference_mode():
        expected = source.model(source.images)
    try:
        several = engine(source.images)
        single = engine(source.images[:1])
    except Exception as error:  # engines raise exceptions of any kind
        raise export_error(source, target, f"{target.engine} cannot run it", error) from error
    scale = float(expected.abs().max())
    worst = 0.0
    for found, right in ((several, expected), (single, expected[:1])):
        if found.shape != right.shape or not torch.isfinite(found).all():
            what = f"logits of shape {tuple(found.shape)} instead of {tuple(right.shape)}, or infinity"
            raise export_error(source, target, f"{target.engine} returns {what} for {len(right)} images")
        worst = max(worst, float((found - right).abs().max()))
    if target.exact and worst > 1e-3 * scale + 1e-5:
        raise export_error(source, target, f"in {target.engine}, its logits differ by {worst:g} from PyTorch's")
    return worst / scale if scale else worst


def export_error(
    source: Exportable,
    target: Target,
    problem: str,
    error: Exception | None = None,
    others: Sequence[str] = tuple(TARGETS),
) -> MmpError:
    """Return the error for an export that is not possible, with other targets to try.

    Args:
        source: The model.
        target: The target.
        problem: A description of the problem.
        error: The exception behind it.
        others: Targets that may support the model.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] if error else []
    why = f" ({type(error).__name__}: {' '.join(lines)[:300]})" if error else ""
    others = " or ".join(f"target={name}" for name in others if name != target.name)
    return MmpError(
        f"{source.name} as target={target.name}: {problem}{why}; nothing was written. Try {others}, or newer packages: "
        f"pip install --upgrade 'mmp[{target.extra}]'"
    )
