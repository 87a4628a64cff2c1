"""Compact storage of tensors with many zeros: kept values, where they belong, and a checksum over every byte.

A file is a safetensors file. A tensor with few zeros lies in it as it is. Of any other tensor ``name`` it has
``name|values``, the entries that are not zero, and one of two records of where they belong, whichever is smaller:

- ``name|bits``: a bit for every entry, set where there is a value (``numpy.packbits``);
- ``name|gaps``: a byte for every value, the number of zeros before it, at most 254; a byte 255 stands for 255 zeros
  without a value after them.

Only +0.0 counts as zero, so what is read has the bits of what was written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mmp.errors import MmpError
from mmp.files import write_atomically
from mmp.pruning.masks import INTEGERS

FORMAT = "mmp-sparse-1"
_SKIP = 255
_DIGEST = rb"{\"sha256\": \""  # what stands before 64 digits, of the file with zeros in their place
_TYPES = (  # that safetensors both writes and reads
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float32, torch.float64,
)  # fmt: skip


def save_sparse(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a compact file, atomically.

    Args:
        path: The file.
        tensors: Tensors by name, for instance a state_dict.

    Raises:
        MmpError: if a name holds the sign ``|``, a tensor is of a kind that safetensors files cannot hold, or the file
            cannot be written.
    """
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        if "|" in name:
            raise MmpError(f"tensor {name!r}: a sparse file cannot hold a name with '|'")
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _TYPES:
            raise MmpError(f"tensor {name!r}: a sparse file cannot hold {tensor.dtype}, {tensor.layout} there")
        value = tensor.detach().cpu().contiguous()
        parts = _compress(value.flatten())
        if parts:
            shapes[name] = list(value.shape)
            stored |= {f"{name}|{part}": data for part, data in parts.items()}
        else:
            stored[name] = value.clone()  # safetensors refuses tensors that share memory
    notes = {"sha256": "0" * 64, "format": FORMAT, "shapes": shapes}
    content = safetensors.torch.save(stored, {"mmp": json.dumps(notes)})  # of two entries, the order would be random
    at = content.index(_DIGEST) + len(_DIGEST)
    signed = content[:at] + hashlib.sha256(content).hexdigest().encode() + content[at + 64 :]
    write_atomically(path, lambda temporary: temporary.write_bytes(signed))


def load_sparse(path: Path | str) -> dict[str, Tensor]:
    """Read what :func:`save_sparse` wrote, bit for bit.

    Args:
        path: The file.

    Returns:
        Tensors by name, for ``load_state_dict``.

    Raises:
        MmpError: if the file is missing or not of this format, or if a single byte of it was changed.
    """
    path = Path(path)
    if not path.is_file():
        raise MmpError(f"{path}: no such file")
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    at = 8 + header.find(_DIGEST) + len(_DIGEST)
    if _DIGEST not in header:
        raise MmpError(f"{path}: not a sparse file of mmp; load safetensors files with mmp.tensors.load_tensors")
    if content[at : at + 64] != _digest(content, at).encode():
        raise MmpError(f"{path}: the contents do not match their checksum; export the file again")
    try:
        notes = json.loads(json.loads(header)["__metadata__"]["mmp"])
        version = notes["format"]
        tensors = _tensors(safetensors.torch.load(content), notes["shapes"]) if version == FORMAT else {}
    except Exception as error:  # whatever contents lead to that somebody knew how to sign
        raise MmpError(f"{path}: not a well-formed sparse file ({type(error).__name__}: {error})") from error
    if version != FORMAT:
        raise MmpError(f"{path}: is of format {version!r}, this version of mmp reads {FORMAT!r}")
    return tensors


def _digest(content: bytes, at: int) -> str:
    sha = hashlib.sha256(content[:at])
    sha.update(b"0" * 64)
    sha.update(memoryview(content)[at + 64 :])
    return sha.hexdigest()


def _compress(flat: Tensor) -> dict[str, Tensor]:
    """Return the parts of a flat tensor; none if it is smallest as it is."""
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
    """Return the bytes that lead from each position to the next, and at last to within 255 of the end."""
    zeros = np.diff(positions, prepend=-1, append=total) - 1
    skips, rest = zeros // _SKIP, zeros % _SKIP
    gaps = np.full(int(skips.sum()) + len(positions), _SKIP, dtype=np.uint8)
    gaps[np.cumsum(skips[:-1] + 1) - 1] = rest[:-1]
    return gaps


def _tensors(stored: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Return all tensors of a file; everything that it stores must be part of one."""
    whole = {name: value for name, value in stored.items() if "|" not in name}
    parts = {f"{name}|{part}" for name in shapes for part in ("values", "bits", "gaps")}
    if odd := sorted((whole.keys() & shapes.keys()) | (stored.keys() - whole.keys() - parts)):
        raise ValueError(f"{odd[0]!r} belongs to no tensor, or to one that is stored twice")
    return {**whole, **{name: _expand(stored, name, shape) for name, shape in shapes.items()}}


def _expand(stored: Mapping[str, Tensor], name: str, shape: list[int]) -> Tensor:
    """Return a whole tensor; the size of what is stored bounds its own, whatever a header may say."""
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"{name!r} has the shape {shape}")
    values, total = stored[f"{name}|values"], math.prod(shape)
    (where,) = {f"{name}|bits", f"{name}|gaps"} & stored.keys()
    packed, record = where.endswith("bits"), stored[where]
    if record.dtype is not torch.uint8 or record.dim() != 1 or values.dim() != 1:
        raise ValueError(f"{name!r} is stored as {record.dtype} of {record.dim()} dimensions")
    entries = values.view(INTEGERS[values.element_size()])
    if packed:
        bits = record.numpy()
        if len(bits) != -(-total // 8):
            raise ValueError(f"{name!r} has {len(bits)} bytes of bits for {total} entries")
        kept = np.unpackbits(bits).view(bool)
        if int(kept.sum()) != len(values) or kept[total:].any():
            raise ValueError(f"{name!r} has {len(values)} values for {int(kept.sum())} places among {total}")
        flat = torch.zeros(total, dtype=entries.dtype)
        return flat.masked_scatter_(torch.from_numpy(kept[:total]), entries).view(values.dtype).view(shape)
    gaps = record.numpy()
    ends = np.cumsum(np.where(gaps == _SKIP, _SKIP, gaps.astype(np.int64) + 1))
    places = ends[gaps != _SKIP] - 1
    if len(places) != len(values) or not 0 <= total - (ends[-1] if len(ends) else 0) < _SKIP:
        raise ValueError(f"{name!r} has {len(values)} values and {len(gaps)} gaps for {total} entries")
    flat = torch.zeros(total, dtype=entries.dtype)
    flat[torch.from_numpy(places)] = entries
    return flat.view(values.dtype).view(shape)
