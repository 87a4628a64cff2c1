"""A network whose training starts from the weights in a file: ``model.pretrained_file``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mmp.config.schema import ModelConfig
from mmp.errors import MmpError, one_line
from mmp.models.conversion import channels_of, head_names, overlay_for, stem_names
from mmp.models.plain_names import counted
from mmp.models.weight_sets import COUNTER, WeightSet, find_weights
from mmp.models.weights import log_use, problems_of, require_finite, type_mismatches
from mmp.pruning.layers.prunable import prunable_layers


def build_from_file(cfg: ModelConfig, options: Mapping[str, Any], untouched: nn.Module) -> nn.Module:
    """Create a timm model with the weights of a file.

    A last layer of another number of classes is dropped, and a first layer is converted to another number of channels,
    as timm does it. Both are logged. timm does not complain about the file of another model: such a file leaves layers
    as they were initialised, which is checked here.

    Args:
        cfg: The configuration of the model.
        options: Arguments of ``timm.create_model``.
        untouched: The model as it is initialised with the same random numbers.

    Raises:
        MmpError: if the file cannot be read, or holds the weights of another model.
    """
    path = Path(str(cfg.pretrained_file))
    source, before, heads = f"model.pretrained_file={path}", untouched.state_dict(), head_names(untouched)
    found = find_weights(path, source, before, cfg.weights_key, optional=[*heads, *stem_names(untouched)])
    state = _own_tensors(found, before, heads)
    foreign = f"{source}: not the weights of model.name={cfg.name}; correct one of them"
    try:
        model, kept = _create(cfg.name, options, untouched, state)
    except Exception as error:  # a conversion can raise any exception
        reason = "; ".join(problems_of(found, before)[:2]) or one_line(error)[:200]
        raise MmpError(f"{foreign} ({reason})") from error
    after = model.state_dict()
    if problems := type_mismatches(state, after):
        raise MmpError(f"{foreign} ({problems[0]})")
    layers = [layer.name for layer in prunable_layers(model) if layer.role != "classifier"]
    missed = [name for name in layers if torch.equal(before[name], after[name])]
    if missed:
        raise MmpError(f"{foreign} (it holds none for {len(missed)} layers, such as {missed[0]!r})")
    require_finite(model, source)
    log_use(_with_notes(found, state, before, [] if kept else heads), state, before, path)
    return model


def start_from_file(network: nn.Module, cfg: ModelConfig) -> nn.Module:
    """Load the weights of a file into a network of the user. A last layer of another number of classes is dropped.

    Args:
        network: The network; its weights are replaced.
        cfg: The configuration of the model.

    Returns:
        The network.

    Raises:
        MmpError: if the file cannot be read, or holds the weights of another network.
    """
    path, expected, heads = Path(str(cfg.pretrained_file)), network.state_dict(), head_names(network)
    source = f"model.pretrained_file={path}"
    found = find_weights(path, source, expected, cfg.weights_key, optional=heads)
    state = {name: value for name, value in found.tensors.items() if name in expected}
    kept = all(name in state and state[name].shape == expected[name].shape for name in heads)
    dropped = [] if kept else heads
    needed = {name: value for name, value in expected.items() if name not in dropped}
    taken = {name: value for name, value in found.tensors.items() if name not in dropped}
    if problems := problems_of(replace(found, tensors=taken), needed):
        reason = "; ".join(problems[:2])
        raise MmpError(f"{source}: not the weights of {cfg.setting} ({reason}); correct one of them")
    log_use(_with_notes(found, state, expected, dropped), state, expected, path)
    network.load_state_dict({**expected, **{name: value for name, value in taken.items() if name in needed}})
    require_finite(network, source)
    return network


def _own_tensors(found: WeightSet, expected: Mapping[str, Tensor], heads: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of the model alone if the file has all of them, else all, since timm may rename them."""
    if all(name in found.tensors or name in heads or name.endswith(COUNTER) for name in expected):
        return {name: value for name, value in found.tensors.items() if name in expected}
    return dict(found.tensors)


def _create(
    name: str, options: Mapping[str, Any], untouched: nn.Module, state: Mapping[str, Tensor]
) -> tuple[nn.Module, bool]:
    """Return the model with the weights, and whether its last layer is that of the file."""

    def create(keep_head: bool) -> nn.Module:
        overlay = overlay_for(untouched, state, channels_of(untouched, state), keep_head)
        arguments = {**options, "num_classes": untouched.num_classes, "pretrained_cfg_overlay": overlay}
        return timm.create_model(name, pretrained=True, **arguments)

    expected, heads = untouched.state_dict(), head_names(untouched)
    known = any(head in state for head in heads)
    if known and not all(head in state and state[head].shape == expected[head].shape for head in heads):
        return create(keep_head=False), False
    numbers = torch.get_rng_state()
    try:
        return create(keep_head=True), True
    except Exception:
        if known or not heads:
            raise
    torch.set_rng_state(numbers)
    return create(keep_head=False), False  # the last layer has an older name


def _with_notes(
    found: WeightSet, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], dropped: Sequence[str]
) -> WeightSet:
    notes = list(found.notes)
    if unused := [name for name in found.tensors if name not in state]:
        notes.append(f"ignored {counted(unused)}")
    if dropped:
        size = f" of {len(state[dropped[0]])} classes" if dropped[0] in state else ""
        notes.append(f"dropped the last layer{size}; the new one of {len(expected[dropped[0]])} classes is random")
    for name, value in state.items():
        if name not in dropped and name in expected and value.shape != expected[name].shape:
            notes.append(f"{name} converted from {tuple(value.shape)} to {tuple(expected[name].shape)}")
    return replace(found, notes=notes)
