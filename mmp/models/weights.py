"""Weights from checkpoint files, checked before and after they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.tensors import all_finite, load_pickled, load_tensors


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a model.

    It may be a safetensors file, a torch state_dict, or a Lightning checkpoint of this project. Files of torch are read
    with ``weights_only=True``, which refuses a file that would execute code.

    Args:
        model: The model; its weights are replaced.
        path: The checkpoint.

    Raises:
        MmpError: if the file is missing, unreadable or unsafe, or if it belongs to another architecture.
    """
    state = read_state(path, "model.checkpoint")
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    problems += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems += type_mismatches(state, expected)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise MmpError(f"{path}: not a checkpoint of this model ({'; '.join(problems[:3])}{more}); check model.name")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # a tensor cannot be copied
        reason = " ".join(str(error).split())
        raise MmpError(f"{path}: not a checkpoint of this model ({reason}); check model.name") from error
    require_finite(model, str(path))


def read_state(path: Path, key: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, by name.

    Args:
        path: The checkpoint.
        key: The key of the configuration that names it, for error messages.

    Raises:
        MmpError: if the file is missing, unreadable or unsafe, or if it holds anything but plain tensors.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if not path.is_file():
        raise MmpError(f"{key}={path}: no such file")
    try:
        content = load_pickled(path)
    except MmpError as error:
        raise MmpError(f"{error}; use a safetensors file or a torch state_dict") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(n, str) and _is_plain(v) for n, v in state.items()):
        raise MmpError(
            f"{key}={path}: contains no state_dict of plain tensors; use a safetensors file or a torch state_dict"
        )
    if state and all(name.startswith("model.") for name in state):
        return {name.removeprefix("model."): value for name, value in state.items()}
    return dict(state)


def _is_plain(value: object) -> bool:
    if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter):
        return False
    return value.layout is torch.strided and not (value.is_nested or value.is_meta)


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
