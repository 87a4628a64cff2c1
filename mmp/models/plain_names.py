"""Names and tensors of a checkpoint as the plain network has them: without wrappers, pruning and reparametrisations.

The formulas are those of torch: ``torch.nn.utils.prune`` (a weight times its mask), weight norm (Salimans and Kingma
2016, arXiv 1602.07868) and spectral norm in evaluation mode (Miyato et al. 2018, arXiv 1802.05957).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # of torch, around any module
_PROFILED = {"total_ops", "total_params"}  # counters that the profiler thop adds to every module
_PARAMETRIZED = re.compile(r"(?P<start>(?:.*\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<part>.+)")
_SUFFIXED = re.compile(r"(?P<base>.+)_(?P<part>orig|mask|g|v|u)")


def plain(tensors: Mapping[str, Tensor], expected: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under the names of the plain network.

    Args:
        tensors: Tensors of a checkpoint.
        expected: Names of the network's tensors. A name that ends like one of these is not changed.

    Returns:
        The tensors, and what was done with them, a phrase each.
    """
    own = {name.rpartition(".")[2] for name in expected}
    kept: dict[str, Tensor] = {}
    parts: dict[str, dict[str, tuple[str, Tensor]]] = {}
    counters: list[str] = []
    for full_name, value in tensors.items():
        name = ".".join(part for part in full_name.split(".") if part not in _WRAPPERS)
        leaf = name.rpartition(".")[2]
        found = _PARAMETRIZED.fullmatch(name) or _SUFFIXED.fullmatch(name)
        if leaf in _PROFILED and leaf not in own:
            counters.append(name)
        elif found and leaf not in own:
            base = found["start"] + found["name"] if "start" in found.groupdict() else found["base"]
            parts.setdefault(base, {})[found["part"]] = (name, value)
        else:
            kept[name] = value
    folded: dict[str, list[str]] = {}
    for base, of_base in parts.items():
        values = {part: value for part, (_, value) in of_base.items()}
        kind, weight = _fold(values) if base not in kept else ("", None)
        if weight is None:
            kept |= dict(of_base.values())
        else:
            kept[base] = weight
            folded.setdefault(kind, []).append(base)
    notes = [f"{kind} folded into {counted(names)}" for kind, names in folded.items()]
    return kept, notes + ([f"ignored a profiler's {counted(counters)}"] if counters else [])


def counted(names: list[str]) -> str:
    """Return one name, or the number of names and the first."""
    return names[0] if len(names) == 1 else f"{len(names)} tensors such as {names[0]}"


def _fold(parts: Mapping[str, Tensor]) -> tuple[str, Tensor | None]:
    """Return the kind of a reparametrisation and the weight that it stands for, or None if it is not known."""
    values = {part: value.float() for part, value in parts.items() if value.is_floating_point() or part == "mask"}
    match sorted(values):
        case ["mask", "orig"] if values["mask"].shape == values["orig"].shape:
            return "the masks of torch.nn.utils.prune", parts["orig"] * parts["mask"]
        case ["g", "v"]:
            return "weight norm", _weight_norm(values["g"], values["v"])
        case ["original0", "original1"]:
            return "weight norm", _weight_norm(values["original0"], values["original1"])
        case ["orig", "u", "v"]:
            return "spectral norm", _spectral_norm(values["orig"], values["u"], values["v"])
        case ["0._u", "0._v", "original"]:
            return "spectral norm", _spectral_norm(values["original"], values["0._u"], values["0._v"])
    return "", None


def _weight_norm(length: Tensor, direction: Tensor) -> Tensor | None:
    """Return length * direction / norm of the direction, for each slice along the dimension that has a length each."""
    sizes = list(zip(length.shape, direction.shape, strict=False))
    if length.ndim and (length.ndim != direction.ndim or any(ours not in (1, size) for ours, size in sizes)):
        return None
    dims = [dim for dim, size in enumerate(length.shape) if size == 1]
    return direction * (length / torch.linalg.vector_norm(direction, dim=dims or None, keepdim=bool(dims)))


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """Return the weight divided by its largest singular value, as estimated by the two stored vectors."""
    matrices = [weight.movedim(dim, 0).flatten(1) for dim in range(weight.ndim) if weight.ndim > 1]
    shape = (left.numel(), right.numel())
    values = [left.flatten() @ matrix @ right.flatten() for matrix in matrices if matrix.shape == shape]
    return weight / max(values, key=abs) if values else None
