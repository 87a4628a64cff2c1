"""Weights from checkpoint files, checked before and after they are loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mmp.errors import MmpError, one_line
from mmp.models.conversion import converted_by_timm, head_names, stem_names
from mmp.models.weight_sets import COUNTER, WeightSet, find_weights
from mmp.tensors import all_finite

log = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: Path, *, key: str | None = None, weights_key: str | None = None) -> None:
    """Load a checkpoint into a model.

    It is a file of safetensors or of ``torch.save``, as any tool writes it: the weights may be in any mapping within
    the file, and their names may have any prefix. Nothing in the file is executed. Older names are converted as timm
    does it. Tensors of the file that are not used are logged.

    Args:
        model: The model; its weights are replaced.
        path: The checkpoint.
        key: The key of the configuration that names the file, for error messages.
        weights_key: The weights to take, if the file holds several; null takes weights that are not averages.

    Raises:
        MmpError: if the file is missing or unreadable, or if it belongs to another architecture.
    """
    source = f"{key}={path}" if key else str(path)
    expected = model.state_dict()
    found = find_weights(path, source, expected, weights_key)
    state = dict(found.tensors)
    problems = problems_of(found, expected)
    if problems and (converted := converted_by_timm(model, state)):
        state, problems = converted, []
        found = replace(found, notes=[*found.notes, "older names converted by timm"])
    if problems:
        raise MmpError(f"{source}: {_refusal(model, found, problems, path)}")
    log_use(found, state, expected, path)
    for name in expected.keys() - state.keys():
        state[name] = expected[name]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # a tensor cannot be copied
        raise MmpError(f"{source}: not a checkpoint of this model ({one_line(error)}); {_way_out(model)}") from error
    require_finite(model, source)


def problems_of(found: WeightSet, expected: Mapping[str, Tensor]) -> list[str]:
    """Describe how the tensors of a checkpoint differ from those of a network; missing counters do not count."""
    state = found.tensors
    problems = [
        f"{name} is not a plain tensor ({found.others[name]})" if name in found.others else f"missing {name}"
        for name in expected
        if name not in state and not name.endswith(COUNTER)
    ]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    problems += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    return problems + type_mismatches(state, expected)


def _refusal(model: nn.Module, found: WeightSet, problems: list[str], path: Path) -> str:
    state, expected = found.tensors, model.state_dict()
    adaptable = [*head_names(model), *stem_names(model)]
    differing = [name for name in {**expected, **state} if name not in state or name not in expected] + [
        name for name in expected if name in state and state[name].shape != expected[name].shape
    ]
    if differing and all(name in adaptable and name not in found.others for name in differing):
        return (
            f"its first or last layer is missing, or is of other channels or classes ({'; '.join(problems[:2])}); to "
            f"train from its other layers, set model.pretrained_file={path} and model.checkpoint=null"
        )
    if any(name.partition("parametrizations.")[1] for name in state):
        return (
            f"a layer is under a parametrization that cannot be undone ({problems[0]}); remove it before saving, with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"not a checkpoint of this model ({'; '.join(problems[:3])}{more}); {_way_out(model)}"


def _way_out(model: nn.Module) -> str:
    key = "name" if getattr(model, "pretrained_cfg", None) else "_target_"
    return f"check model.{key} and model.kwargs"


def log_use(found: WeightSet, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Log which tensors of a checkpoint become the weights, and how they are changed."""
    notes = [f"weights of {found.key}"] if found.key else []
    notes += found.notes
    changed = {
        (value.dtype, expected[name].dtype)
        for name, value in state.items()
        if name in expected and value.dtype != expected[name].dtype
    }
    notes += [f"converted from {before} to {after}" for before, after in sorted(changed, key=str)]
    if any(name.endswith(COUNTER) and name not in state for name in expected):
        notes.append(f"filled {COUNTER}")
    if notes:
        log.info("%s: %s", path, "; ".join(notes))


def type_mismatches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Describe the tensors of a type that torch would convert with a silent loss: complex to float, float to int."""

    def kind(value: Tensor) -> tuple[bool, bool, bool]:
        return value.is_floating_point(), value.is_complex(), value.dtype is torch.bool

    return [
        f"{name} is {value.dtype} instead of {expected[name].dtype}"
        for name, value in state.items()
        if name in expected and kind(value) != kind(expected[name])
    ]


def require_finite(model: nn.Module, source: str) -> None:
    """Raise if a weight or buffer is NaN or infinite.

    Args:
        model: The network.
        source: The file of the weights, or another origin, for the error message.

    Raises:
        MmpError: if a value is not finite; the message names the tensor.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not all_finite(value):
            raise MmpError(
                f"{source}: {name!r} holds NaN or infinity; the file is damaged, or the training diverged (lower the "
                "learning rate)"
            )
