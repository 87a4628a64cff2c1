"""The parameters of a model that no prunable layer covers, and why."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from mmp.pruning.layers.layer import Layer

log = logging.getLogger(__name__)

MUCH = 0.05  # a larger share of the parameters that is dense without being so by design is a warning

_NORM = re.compile(r"\w*norm\w*", re.IGNORECASE)
# Names of position tables, tokens and latents.
_TABLE_NAME = re.compile(
    r"(?:\w*_)?(?:pos(?:ition(?:s|al)?|emb)?|rel(?:ative)?|bias(?:es)?|tokens?|latents?)\d*(?:_\w*)?", re.IGNORECASE
)

_HOOKED: dict[type, tuple[str, str]] = {  # hooks that compute a weight before each forward pass
    WeightNorm: ("weight norm", "torch.nn.utils.remove_weight_norm"),
    SpectralNorm: ("spectral norm", "torch.nn.utils.remove_spectral_norm"),
    BasePruningMethod: ("torch's own pruning", "torch.nn.utils.prune.remove"),
}
_PARAMETRIZED = {"_WeightNorm": "weight norm", "_SpectralNorm": "spectral norm", "_Orthogonal": "orthogonality"}


@dataclass(frozen=True)
class Reason:
    """A reason why parameters are in no prunable layer.

    Attributes:
        text: The reason in a few words, such as ``weight norm``.
        by_design: Whether such parameters are never pruned, since they multiply no input as a matrix.
        remedy: A way to make the parameters prunable; empty if there is none.
    """

    text: str
    by_design: bool = False
    remedy: str = ""


_SMALL = Reason("biases, norms and scales", by_design=True)
_TABLE = Reason("position tables and tokens", by_design=True)
_EMBEDDING = Reason("embeddings, which are tables")
_COMPLEX = Reason("complex numbers")
_QUANTIZED = Reason("quantized weights", remedy="prune the model before it is quantized")
_BARE = Reason("parameters that a module holds itself", remedy="hold a matrix in an nn.Linear")


@dataclass(frozen=True)
class Uncovered:
    """The parameters that one reason keeps out of all prunable layers.

    Attributes:
        reason: The reason.
        parameters: Number of the parameters.
        example: Name of the largest of their tensors; for a computed weight, the name of that weight.
    """

    reason: Reason
    parameters: int
    example: str


@dataclass(frozen=True)
class Coverage:
    """The parameters of a model inside and outside of its prunable layers.

    Attributes:
        parameters: Number of all parameters.
        uncovered: The parameters outside of the layers by reason, the most numerous first.
    """

    parameters: int = 0
    uncovered: tuple[Uncovered, ...] = ()

    @property
    def share(self) -> float:
        """Share of all parameters that are in no prunable layer, in [0, 1]."""
        return self._share(self.uncovered)

    @property
    def missed(self) -> tuple[Uncovered, ...]:
        """The parameters that stay dense without being so by design."""
        return tuple(part for part in self.uncovered if not part.reason.by_design)

    @property
    def misses_much(self) -> bool:
        """Whether 5 % of the parameters or more stay dense without being so by design."""
        return self._share(self.missed) >= MUCH

    def warn(self, model: str) -> None:
        """Log a warning if 5 % of the parameters or more stay dense without being so by design.

        Args:
            model: The model's name.
        """
        if self.misses_much:
            log.warning("%s: %s", model, self.describe(self.missed))

    def describe(self, parts: Iterable[Uncovered] | None = None) -> str:
        """Return the share of the parameters that no layer covers, with the reasons, in one sentence.

        Args:
            parts: The parts to describe; all if None.
        """
        parts = self.uncovered if parts is None else tuple(parts)
        if not parts:
            return "Prunable layers cover all parameters."
        return f"No prunable layer covers {_percent(self._share(parts))} of the parameters: {self.reasons(parts)}."

    def reasons(self, parts: Iterable[Uncovered]) -> str:
        """Return reasons with their shares of all parameters, in words."""
        return "; ".join(self._describe(part) for part in parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the coverage as plain data for JSON; shares are fractions."""
        return {
            "share": self.share,
            "reasons": [
                {
                    "reason": part.reason.text,
                    "by_design": part.reason.by_design,
                    "parameters": part.parameters,
                    "share": self._share([part]),
                    "example": part.example,
                }
                for part in self.uncovered
            ],
        }

    def _share(self, parts: Iterable[Uncovered]) -> float:
        return sum(part.parameters for part in parts) / max(self.parameters, 1)

    def _describe(self, part: Uncovered) -> str:
        text = f"{part.reason.text} {_percent(self._share([part]))}"
        if part.reason.by_design:
            return text
        return f"{text}, e.g. {part.example!r}" + (f" ({part.reason.remedy})" if part.reason.remedy else "")


def coverage(model: nn.Module, layers: Iterable[Layer]) -> Coverage:
    """Return the share of a model's parameters that no layer covers, by reason.

    Args:
        model: The model, on any device, ``meta`` included.
        layers: Its prunable layers.

    Example:
        >>> from torch import nn
        >>> from mmp.pruning.layers.prunable import prunable_layers
        >>> model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(90, 10)), nn.Linear(10, 10))
        >>> found = coverage(model, prunable_layers(model))
        >>> [(part.reason.text, part.parameters, part.example) for part in found.uncovered]
        [('weight norm', 910, '0.weight'), ('biases, norms and scales', 20, '0.bias')]
    """
    modules = dict(model.named_modules())
    names = dict(model.named_parameters(remove_duplicate=False))
    covered = {id(names[layer.name]) for layer in layers}
    found: dict[Reason, list[tuple[int, str]]] = {}
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if id(parameter) not in covered:
            reason, weight = _reason(modules, name, parameter)
            found.setdefault(reason, []).append((parameter.numel(), weight))
    uncovered = [
        Uncovered(reason, sum(count for count, _ in parts), max(parts, key=lambda part: part[0])[1])
        for reason, parts in found.items()
    ]
    total = sum(parameter.numel() for parameter in parameters.values())
    return Coverage(total, tuple(sorted(uncovered, key=lambda part: -part.parameters)))


def _reason(modules: dict[str, nn.Module], name: str, parameter: Tensor) -> tuple[Reason, str]:
    """Return the reason why a parameter is in no layer, and the name of the weight that it belongs to."""
    path, _, own = name.rpartition(".")
    if computed := _computed(modules, path, own):
        return computed
    owner = modules[path]
    return _of_kind(owner, f"{path.rpartition('.')[2]}_{own}", parameter), name


def _of_kind(owner: nn.Module, name: str, parameter: Tensor) -> Reason:
    """Return the reason for a parameter that is not the source of a computed weight.

    Args:
        owner: The module that owns the parameter.
        name: The last part of the owner's path and the parameter's own name, with an underscore between them.
        parameter: The parameter.
    """
    if parameter.is_complex():
        return _COMPLEX
    if not parameter.is_floating_point() or parameter.itemsize == 1:
        return _QUANTIZED
    if sum(size > 1 for size in parameter.shape) < 2 or _NORM.fullmatch(type(owner).__name__):
        return _SMALL
    if _TABLE_NAME.fullmatch(name):
        return _TABLE
    return _EMBEDDING if isinstance(owner, nn.Embedding | nn.EmbeddingBag) else _BARE


def _computed(modules: dict[str, nn.Module], path: str, own: str) -> tuple[Reason, str] | None:
    """Return the reason and the weight's name if a weight is computed from a parameter, else None."""
    outer, inside, inner = path.rpartition("parametrizations.")
    tensor = inner.partition(".")[0]
    parametrizations = modules.get(f"{outer}{inside}{tensor}")
    if isinstance(parametrizations, ParametrizationList):
        return _parametrized(parametrizations), f"{outer}{tensor}"
    for hook in modules[path]._forward_pre_hooks.values():
        for kind, (text, remove) in _HOOKED.items():
            weight = getattr(hook, "name", None) or getattr(hook, "_tensor_name", "")
            if isinstance(hook, kind) and own in (f"{weight}_g", f"{weight}_v", f"{weight}_orig"):
                return Reason(text, remedy=f"remove it with {remove}"), f"{path}.{weight}".removeprefix(".")
    return None


def _parametrized(parametrizations: ParametrizationList) -> Reason:
    kinds = [type(module).__name__ for module in parametrizations]
    known = [_PARAMETRIZED.get(kind, f"parametrization {kind}") for kind in kinds]
    return Reason(" and ".join(known), remedy="remove it with torch.nn.utils.parametrize.remove_parametrizations")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
