"""Shrunk files: a network without the channels that nothing reads, and all that is needed to build it again.

A shrunk file is a safetensors file. It holds the ``state_dict`` of the smaller network in its own shapes and data
types, and in addition the buffers outside it that differ from those of the dense network. The notes in its header
(:mod:`mmp.export.signed_file`) are the arguments of timm's model or the address of the user's class, the attributes of
modules that count channels, the version of timm, and what the writer adds, such as the classes. A class in a file is
never imported: who reads the file passes the network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mmp.config.schema import ModelConfig
from mmp.errors import MmpError
from mmp.export.signed_file import malformed, read_signed, write_signed
from mmp.models.networks import build_bare, python_code
from mmp.pruning.channels.removal import set_attributes, set_tensors, tensors_of

FORMAT = "mmp-shrunk-1"


def save_shrunk(
    path: Path,
    network: nn.Module,
    config: ModelConfig,
    attributes: Mapping[str, Mapping[str, int | float]],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a smaller network to a shrunk file, atomically.

    Args:
        path: The file to write.
        network: The smaller network.
        config: The configuration of the dense network that it was made of.
        attributes: The attributes in which it differs (:class:`mmp.pruning.channels.removal.Removal`).
        more: Further notes for the header.

    Raises:
        MmpError: if the file cannot be written.
    """
    state, original = network.state_dict(), tensors_of(_built(config))
    others = {
        name: tensor
        for name, tensor in tensors_of(network).items()
        if name not in state and not _same(tensor, original.get(name))
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in {**state, **others}.items()}
    named = "_target_" if config._target_ else "name"
    arguments = {key: getattr(config, key) for key in (named, "num_classes", "in_chans", "kwargs")}
    notes = {"model": arguments, "attributes": attributes, "timm": timm.__version__, **(more or {})}
    write_signed(path, FORMAT, tensors, notes)


def load_shrunk(path: Path | str, network: nn.Module | None = None) -> nn.Module:
    """Build the network of a file of ``target=shrunk``, with fewer channels than the dense network.

    Args:
        path: The file.
        network: The dense network, if it is not one of timm: your class with the arguments that it had. Its weights do
            not matter, and it is not changed.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        MmpError: if the file is missing, is no shrunk file, if one byte of it has changed, if it needs ``network``, or
            if it belongs to another network.
    """
    path = Path(path)
    tensors, notes = read_signed(path, FORMAT)
    try:
        network = _dense(ModelConfig(**notes["model"]), network)
        _require_narrower(network, tensors)
        set_tensors(network, {name: tensor.clone() for name, tensor in tensors.items()})  # each in its own memory
        set_attributes(network, notes["attributes"])
    except MmpError as error:
        versions = f"; written with timm {notes.get('timm')}, read with timm {timm.__version__}"
        of = "" if notes["model"].get("_target_") else versions
        raise MmpError(f"{path}: {error}{of}") from error
    except Exception as error:  # a file with a valid checksum can still have any content
        raise malformed(path, FORMAT, error) from error
    return network


def _dense(config: ModelConfig, network: nn.Module | None) -> nn.Module:
    """Return the dense network of a file: timm's, or a copy of the user's."""
    if network is not None:
        return copy.deepcopy(network).cpu().eval()
    if config._target_:
        _, code = python_code(config)
        raise MmpError(f"holds a network of your own; pass it: mmp.load_shrunk(FILE, {code})")
    return _built(config)


def _built(config: ModelConfig) -> nn.Module:
    with torch.random.fork_rng():
        return build_bare(config).eval()


def _require_narrower(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless tensors can be those of the network with fewer channels."""
    own, kind = tensors_of(network), type(network).__name__
    if missing := sorted(network.state_dict().keys() - tensors.keys()):
        raise MmpError(f"tensor {missing[0]!r} of {kind} is missing")
    for name, tensor in tensors.items():
        if name not in own:
            raise MmpError(f"tensor {name!r} is not in {kind}")
        shape, most = tuple(tensor.shape), tuple(own[name].shape)
        if len(shape) != len(most) or any(size > whole for size, whole in zip(shape, most, strict=True)):
            raise MmpError(f"tensor {name!r} has shape {shape}, but {kind} has at most {most}")
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise MmpError(f"tensor {name!r} is {tensor.dtype} instead of {own[name].dtype}")


def _same(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and tensor.dtype == other.dtype and torch.equal(tensor.cpu(), other)
