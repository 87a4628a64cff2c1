"""Sparse files: compact storage of tensors with many zeros, with a checksum over every byte.

A sparse file is a safetensors file. A tensor with few zeros is stored unchanged. Any other tensor ``name`` is stored as
``name|values``, its entries that are not zero, and as the smaller of two records of their positions:

- ``name|bits``: one bit for every entry, set if it is not zero (``numpy.packbits``);
- ``name|gaps``: one byte for every value, the number of zeros before it, at most 254. A byte 255 means 255 zeros
  without a value after them.

Only +0.0 counts as zero, so every bit of a tensor is restored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmp.errors import MmpError
from mmp.export.signed_file import malformed, read_signed, write_signed
from mmp.pruning.masks import INTEGERS

FORMAT = "mmp-sparse-1"
_SKIP = 255
_TYPES = (  # the data types that safetensors both writes and reads
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float32, torch.float64,
)  # fmt: skip


def save_sparse(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a sparse file, atomically.

    Args:
        path: The file to write.
        tensors: Tensors by name, such as a ``state_dict``.

    Raises:
        MmpError: if a name contains ``|``, a tensor has a layout or data type that safetensors does not support, or the
            file cannot be written.
    """
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        if "|" in name:
            raise MmpError(f"tensor {name!r}: a sparse file cannot hold a name with '|'; rename it")
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _TYPES:
            kind = f"{tensor.dtype} with {tensor.layout} on {tensor.device}"
            raise MmpError(f"tensor {name!r}: a sparse file cannot hold {kind}")
        value = tensor.detach().cpu().contiguous()
        parts = _compress(value.flatten())
        if parts:
            shapes[name] = list(value.shape)
            stored |= {f"{name}|{part}": data for part, data in parts.items()}
        else:
            stored[name] = value.clone()  # safetensors refuses tensors that share memory
    write_signed(path, FORMAT, stored, {"shapes": shapes})


def load_sparse(path: Path | str) -> dict[str, Tensor]:
    """Read a file of :func:`save_sparse`, bit for bit.

    Args:
        path: The file.

    Returns:
        Dense tensors by name, for ``load_state_dict``.

    Raises:
        MmpError: if the file is missing, is no sparse file, or if one byte of it has changed.
    """
    stored, notes = read_signed(Path(path), FORMAT)
    try:
        return _tensors(stored, notes["shapes"])
    except Exception as error:  # a file with a valid checksum can still have any content
        raise malformed(Path(path), FORMAT, error) from error


def _compress(flat: Tensor) -> dict[str, Tensor]:
    """Return the parts of a flat tensor; none if storing it unchanged takes less space."""
    if flat.element_size() not in INTEGERS or not flat.numel():
        return {}
    size = flat.element_size()
    entries = flat.view(INTEGERS[size])
    kept = entries.numpy() != 0
    positions = np.flatnonzero(kept)
    bits, gaps = -(-len(kept) // 8), _gaps(positions, len(kept))
    if len(positions) * size + min(bits, len(gaps)) >= len(kept) * size:
        return {}
    where = {"gaps": gaps} if len(gaps) < bits else {"bits": np.packbits(kept)}
    values = entries[torch.from_numpy(kept)].view(flat.dtype)
    return {"values": values, **{key: torch.from_numpy(value) for key, value in where.items()}}


def _gaps(positions: np.ndarray, total: int) -> np.ndarray:
    """Return the gaps: bytes that lead from each position to the next, and at last to less than 255 from the end."""
    zeros = np.diff(positions, prepend=-1, append=total) - 1
    skips, rest = zeros // _SKIP, zeros % _SKIP
    gaps = np.full(int(skips.sum()) + len(positions), _SKIP, dtype=np.uint8)
    gaps[np.cumsum(skips[:-1] + 1) - 1] = rest[:-1]
    return gaps


def _tensors(stored: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Return all tensors of a file. Everything in the file must be part of exactly one of them."""
    whole = {name: value for name, value in stored.items() if "|" not in name}
    parts = {f"{name}|{part}" for name in shapes for part in ("values", "bits", "gaps")}
    if odd := sorted((whole.keys() & shapes.keys()) | (stored.keys() - whole.keys() - parts)):
        raise ValueError(f"{odd[0]!r} is part of no tensor, or of one that is stored twice")
    return {**whole, **{name: _expand(stored, name, shape) for name, shape in shapes.items()}}


def _expand(stored: Mapping[str, Tensor], name: str, shape: list[int]) -> Tensor:
    """Return a tensor with its zeros. Stored data limit its size, so a header cannot claim any amount of memory."""
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"{name!r} has the shape {shape}")
    values, total = stored[f"{name}|values"], math.prod(shape)
    (where,) = {f"{name}|bits", f"{name}|gaps"} & stored.keys()
    record = stored[where]
    if record.dtype is not torch.uint8 or record.dim() != 1 or values.dim() != 1:
        raise ValueError(f"{name!r} is stored as {record.dtype} of {record.dim()} dimensions")
    entries = values.view(INTEGERS[values.element_size()])
    place = _place_by_bits if where.endswith("bits") else _place_by_gaps
    return place(entries, record.numpy(), name, total).view(values.dtype).view(shape)


def _place_by_bits(entries: Tensor, bits: np.ndarray, name: str, total: int) -> Tensor:
    if len(bits) != -(-total // 8):
        raise ValueError(f"{name!r} has {len(bits)} bytes of bits for {total} entries")
    kept = np.unpackbits(bits).view(bool)
    if int(kept.sum()) != len(entries) or kept[total:].any():
        raise ValueError(f"{name!r} has {len(entries)} values for {int(kept.sum())} bits that are set among {total}")
    return torch.zeros(total, dtype=entries.dtype).masked_scatter_(torch.from_numpy(kept[:total]), entries)


def _place_by_gaps(entries: Tensor, gaps: np.ndarray, name: str, total: int) -> Tensor:
    ends = np.cumsum(np.where(gaps == _SKIP, _SKIP, gaps.astype(np.int64) + 1))
    places = ends[gaps != _SKIP] - 1
    if len(places) != len(entries) or not 0 <= total - (ends[-1] if len(ends) else 0) < _SKIP:
        raise ValueError(f"{name!r} has {len(entries)} values and {len(gaps)} gaps for {total} entries")
    flat = torch.zeros(total, dtype=entries.dtype)
    flat[torch.from_numpy(places)] = entries
    return flat
