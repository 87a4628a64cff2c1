"""Tensors on disk: safetensors files under a checksum, and pickles that cannot execute code."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmp.errors import MmpError
from mmp.files import write_atomically


def all_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or infinity, from their extremes: one look, and no second tensor.

    Args:
        values: Floating-point tensor of any shape, empty ones included.
    """
    return not values.numel() or all(map(torch.isfinite, torch.aminmax(values)))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names, types, shapes and values, whatever the order or device."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors to a safetensors file with their digest in its header, atomically.

    Returns:
        The digest of the tensors.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    uses = Counter(value.untyped_storage().data_ptr() for value in plain.values())
    for name, value in plain.items():
        if uses[value.untyped_storage().data_ptr()] > 1:  # tied weights, which safetensors refuses
            plain[name] = value.clone()
    digest = tensors_digest(plain)
    write_atomically(path, lambda temporary: save_file(plain, temporary, metadata={"sha256": digest}))
    return digest


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors; a file that carries a digest is checked against it.

    Raises:
        MmpError: if the file is missing, not a safetensors file, truncated or altered.
    """
    if not path.is_file():
        raise MmpError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, ValueError) as error:
        raise MmpError(f"{path}: not a readable safetensors file ({error})") from error
    if expected and tensors_digest(tensors) != expected:
        raise MmpError(f"{path}: the contents do not match their checksum; the file was altered")
    return tensors


def load_pickled(path: Path) -> Any:
    """Read a file of ``torch.save`` onto the CPU, with ``weights_only=True``: one that would execute code is refused.

    Raises:
        MmpError: if the file is unsafe, damaged or of another kind. Its checksums count, too, which torch ignores.
    """
    damaged, content = None, None
    try:
        if is_zipfile(path):
            with ZipFile(path) as archive:
                damaged = archive.testzip()
        if not damaged:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MmpError(f"{path}: refused or unreadable ({reason})") from error
    if damaged:
        raise MmpError(f"{path}: refused or unreadable ({damaged} does not match its checksum)")
    return content
