"""Targets: what a pruned model is exported to. One class in one file each, and a line in `TARGETS`.

A target is a :class:`Target`; it needs no base class. ``mmp.export`` measures and describes what it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol

import torch
from torch import Tensor, nn

from mmp.config.schema import ModelConfig
from mmp.errors import MmpError, nearest
from mmp.pruning.layers.eval_mode import forget_cached
from mmp.pruning.masks import Masks

TARGETS = {
    "onnx": "mmp.export.targets.onnx_fp32:Onnx",
    "onnx_int8": "mmp.export.targets.onnx_int8:OnnxInt8",
    "openvino": "mmp.export.targets.openvino_ir:OpenVino",
    "executorch": "mmp.export.targets.executorch_xnnpack:ExecuTorch",
    "sparse": "mmp.export.targets.sparse:Sparse",
}

Engine = Callable[[Tensor], Tensor]
"""What runs a file: images (B, C, H, W) of any B, on the CPU -> logits (B, classes)."""


@dataclass(frozen=True)
class Exportable:
    """What is exported.

    Attributes:
        config: The timm model.
        model: The same with its weights, in eval mode and on the CPU.
        masks: Which of its weights were kept.
        batches: Calibration images (B, C, H, W), normalised; they can be gone through as often as one likes.
        scratch: A folder for intermediate files of this very source.
    """

    config: ModelConfig
    model: nn.Module
    masks: Masks
    batches: Iterable[Tensor]
    scratch: Path

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.title

    @cached_property
    def images(self) -> Tensor:
        """A few calibration images, to try a file with."""
        return next(iter(self.batches))[:3]

    def settled(self) -> nn.Module:
        """Return the model after a forward pass in eval mode, with what it keeps from there: a constant to exporters.

        LeViT keeps its attention biases so. In the file of a model that has not run they are gathered anew for every
        image; two files can be compared where both models have.
        """
        forget_cached(self.model)
        self.model.eval()
        with torch.no_grad():
            self.model(self.images)
        return self.model

    def with_weights(self, model: nn.Module, scratch: Path) -> Exportable:
        """Return the same architecture with other weights, none of them pruned."""
        return replace(self, model=model.eval(), masks=Masks({}), scratch=scratch)


class Target(Protocol):
    """A kind of file, and the engine that runs it.

    Attributes:
        name: What a user asks for.
        files: Names of the files that it writes; the first is what its engine opens.
        engine: What runs it, for people.
        packages: What it imports, besides what mmp itself needs.
        extra: The extras of mmp that bring them.
        exact: Whether the file computes what the model does, up to rounding in float32.
    """

    name: str
    files: tuple[str, ...]
    engine: str
    packages: tuple[str, ...]
    extra: str
    exact: bool

    def write(self, source: Exportable, path: Path) -> None:
        """Write the files of a model; ``path`` is where the first one goes, beside it the others.

        Raises:
            MmpError: naming model, target and the way out, where this cannot be done.
        """

    def open(self, path: Path, source: Exportable) -> Engine:
        """Return what runs a file."""

    def weights(self, path: Path, source: Exportable) -> dict[str, Tensor]:
        """Return, from the file, the weights under each mask, in the mask's shape; of any type, zeros are 0."""

    def usage(self, source: Exportable) -> str:
        """Return the lines of Python that load the file and run it on ``images``."""


def load_target(name: str) -> Target:
    """Return a target by name.

    Raises:
        MmpError: if there is none, or a package is missing.
    """
    if name not in TARGETS:
        raise MmpError(f"target={name}: no such target; {nearest(name, TARGETS)}")
    target: Target = resolve_name(TARGETS[name])()
    missing = [package for package in (*target.packages, "zstandard") if find_spec(package) is None]
    if missing:
        raise MmpError(f"target={name} needs {' and '.join(missing)}: pip install 'mmp[{target.extra}]'")
    return target


def tried(engine: Engine, source: Exportable, target: Target) -> float:
    """Run a file on one image and on a few, and compare it with the model.

    Returns:
        The largest difference of a logit, over the largest logit.

    Raises:
        MmpError: if it does not run, puts out something else, or is no longer finite.
    """
    with torch.inference_mode():
        expected = source.model(source.images)
    try:
        several = engine(source.images)
        single = engine(source.images[:1])
    except Exception as error:  # whatever an engine raises
        raise unable(source, target, f"{target.engine} cannot run it", error) from error
    scale = float(expected.abs().max())
    worst = 0.0
    for found, right in ((several, expected), (single, expected[:1])):
        if found.shape != right.shape or not torch.isfinite(found).all():
            what = f"shape {tuple(found.shape)} instead of {tuple(right.shape)}, or infinity"
            raise unable(source, target, f"{target.engine} makes {what} of {len(right)} images")
        worst = max(worst, float((found - right).abs().max()))
    if target.exact and worst > 1e-3 * scale + 1e-5:
        raise unable(source, target, f"in {target.engine} its logits differ by {worst:g} from PyTorch's")
    return worst / scale if scale else worst


def unable(
    source: Exportable,
    target: Target,
    what: str,
    error: Exception | None = None,
    others: Sequence[str] = tuple(TARGETS),
) -> MmpError:
    """Return the error that tells what an engine cannot do, and the way out.

    Args:
        source: The model.
        target: What it was to be.
        what: What went wrong.
        error: What was raised.
        others: Targets that may work all the same.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] if error else []
    why = f" ({type(error).__name__}: {' '.join(lines)[:300]})" if error else ""
    others = " or ".join(f"target={name}" for name in others if name != target.name)
    return MmpError(
        f"{source.name} as target={target.name}: {what}{why}; nothing was written. Try {others}, or newer packages: "
        f"pip install --upgrade 'mmp[{target.extra}]'"
    )
