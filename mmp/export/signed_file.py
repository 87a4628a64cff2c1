"""Files of tensors and notes with a checksum over every byte: safetensors files whose header has one entry, ``mmp``.

The notes are JSON. The first of them is the SHA-256 of the file with zeros in the place of its digits; the second is
the format, from which the loading function follows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from mmp.errors import MmpError
from mmp.files import write_atomically

_LOADED_BY = {"sparse": "mmp.load_sparse", "shrunk": "mmp.load_shrunk"}  # by kind
_DIGEST = rb"{\"sha256\": \""  # followed by 64 digits: the digest of the file with zeros in their place


def write_signed(path: Path, version: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write tensors and notes, atomically.

    Args:
        path: The file to write.
        version: The format, such as ``mmp-sparse-1``.
        tensors: Tensors by name, on the CPU, contiguous, and without shared memory.
        notes: Anything that JSON can express.

    Raises:
        MmpError: if the file cannot be written.
    """
    text = json.dumps({"sha256": "0" * 64, "format": version, **notes})
    content = safetensors.torch.save(dict(tensors), {"mmp": text})  # one entry: two have a random order
    at = content.index(_DIGEST) + len(_DIGEST)
    signed = content[:at] + hashlib.sha256(content).hexdigest().encode() + content[at + 64 :]
    write_atomically(path, lambda temporary: temporary.write_bytes(signed))


def read_signed(path: Path, version: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and notes.

    Args:
        path: The file.
        version: The format that it must have.

    Raises:
        MmpError: if the file is missing, of another format, or if one byte of it has changed.
    """
    if not path.is_file():
        raise MmpError(f"{path}: no such file")
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    at = 8 + header.find(_DIGEST) + len(_DIGEST)
    kind = _kind(version)
    if _DIGEST not in header:
        raise MmpError(f"{path}: not a {kind} file of mmp; load safetensors files with mmp.tensors.load_tensors")
    if content[at : at + 64] != _digest(content, at).encode():
        raise MmpError(f"{path}: the contents do not match their checksum; export the file again")
    try:
        notes = dict(json.loads(json.loads(header)["__metadata__"]["mmp"]))
        found = str(notes["format"])
        tensors = safetensors.torch.load(content) if found == version else {}
    except Exception as error:  # a file with a valid checksum can still have any content
        raise malformed(path, version, error) from error
    other = _kind(found)
    if other != kind and other in _LOADED_BY:
        raise MmpError(f"{path}: not a {kind} file, but a {other} file; load it with {_LOADED_BY[other]}")
    if found != version:
        raise MmpError(f"{path}: has format {found!r}, but this version of mmp reads {version!r}; update mmp")
    return tensors, notes


def malformed(path: Path, version: str, error: Exception) -> MmpError:
    """Return the error for a file with a valid checksum whose content makes no sense."""
    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return MmpError(f"{path}: not a well-formed {_kind(version)} file ({why})")


def _kind(version: str) -> str:
    return version.removeprefix("mmp-").rpartition("-")[0]


def _digest(content: bytes, at: int) -> str:
    sha = hashlib.sha256(content[:at])
    sha.update(b"0" * 64)
    sha.update(memoryview(content)[at + 64 :])
    return sha.hexdigest()
