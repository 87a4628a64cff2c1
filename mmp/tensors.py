"""Tensors on disk: safetensors files with a checksum, and pickled files loaded without executing code."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmp.errors import MmpError
from mmp.files import write_atomically
from mmp.machine import usable_memory


def memory_of(device: torch.device) -> int:
    """Return the bytes of a GPU's memory or, for any other device, of the memory that this process may use."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else usable_memory()


def free_memory_of(device: torch.device) -> int:
    """Return the bytes of a GPU's memory that nobody uses or, for any other device, of this process's usable memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else usable_memory()


def all_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or infinite.

    Looks at the minimum and maximum only: one pass, and no temporary tensor of the same size.

    Args:
        values: Floating-point tensor of any shape, possibly empty.
    """
    return not values.numel() or all(map(torch.isfinite, torch.aminmax(values)))


def widened(values: Tensor) -> Tensor:
    """Return half-precision values in float32, in which products and sums keep their precision; others unchanged.

    Args:
        values: Floating-point tensor of any shape.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names, dtypes, shapes and values. It does not depend on order or device."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors to a safetensors file, atomically, with their digest in its header.

    Args:
        path: The file to write.
        tensors: Tensors by name, on any device; two of them may share memory.

    Returns:
        The digest of the tensors.

    Raises:
        MmpError: if the file cannot be written; the message names it.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    uses = Counter(value.untyped_storage().data_ptr() for value in plain.values())
    for name, value in plain.items():
        if uses[value.untyped_storage().data_ptr()] > 1:  # safetensors refuses tensors that share memory
            plain[name] = value.clone()
    digest = tensors_digest(plain)
    write_atomically(path, lambda temporary: save_file(plain, temporary, metadata={"sha256": digest}))
    return digest


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, and check them against the digest in its header if it has one.

    Raises:
        MmpError: if the file is missing, truncated, altered, or not a safetensors file.
    """
    if not path.is_file():
        raise MmpError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, ValueError) as error:
        raise MmpError(f"{path}: not a readable safetensors file ({error})") from error
    if expected and tensors_digest(tensors) != expected:
        raise MmpError(f"{path}: the contents do not match their checksum; restore the file or create it again")
    return tensors


def load_pickled(path: Path) -> Any:
    """Load a file of ``torch.save`` onto the CPU with ``weights_only=True``, so that it cannot execute code.

    Unlike ``torch.load``, this also verifies the checksums of the zip archive.

    Raises:
        MmpError: if the file would execute code, is damaged, or is not a file of ``torch.save``.
    """
    damaged, content = None, None
    try:
        if is_zipfile(path):
            with ZipFile(path) as archive:
                damaged = archive.testzip()
        if not damaged:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any exception
        refused = isinstance(error, UnpicklingError)
        reason = "it holds objects that are no tensors" if refused else type(error).__name__
        raise MmpError(f"{path}: refused or unreadable ({reason})") from error
    if damaged:
        raise MmpError(f"{path}: refused or unreadable ({damaged} does not match its checksum)")
    return content
