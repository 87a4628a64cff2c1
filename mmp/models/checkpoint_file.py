"""Checkpoint files of any tool: which tensors a file holds, by name. The content decides the format, not the ending."""

from __future__ import annotations

import pickle
import re
import tarfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from mmp.errors import MmpError, first_line, printable
from mmp.models import inert_pickle
from mmp.models.inert_pickle import StandIn, state_of
from mmp.tensors import load_tensors

_DEPTH = 4  # of mappings within mappings
_COPY = "copy or download it again"
_SAVE = "save the weights alone, with torch.save(model.state_dict(), FILE)"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# The first bytes of files that people take for weights, and what to do with them.
_FOREIGN = {
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the file itself with git lfs pull",
    b"<": "it is a web page; download the file itself",
    b"\x1f\x8b": "it is compressed; unpack it with gunzip or tar",
    b"\x89HDF": "it is an HDF5 file, which Keras and TensorFlow write; convert its weights to safetensors",
    b"{": "it is a JSON file; name the file of the weights",
    b"GGUF": "it is a GGUF file; convert its weights to safetensors",
    b"\x93NUMPY": "it is a NumPy array; convert the weights to safetensors",
    b"BZh": "it is compressed; unpack it with bunzip2",
    b"\xfd7zXZ": "it is compressed; unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "it is compressed; unpack it with unzstd",
}
# torch's format before 1.6 begins with this number, in binary or as text.
_MAGIC = (bytes.fromhex("6cfc9c46f9206aa85019"), b"119547037146038801333356")


@dataclass(frozen=True)
class Group:
    """The entries of one mapping in a checkpoint that holds tensors.

    Attributes:
        key: The keys that lead to it, joined by dots; empty for the content itself.
        entries: Its values by name: tensors, and values of other types between them.
    """

    key: str
    entries: Mapping[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The plain tensors among the entries."""
        return {name: value.detach() for name, value in self.entries.items() if _is_plain(value)}


def read_groups(path: Path, source: str) -> list[Group]:
    """Return the mappings of a checkpoint that hold tensors, the outermost first.

    Nothing in the file is executed.

    Args:
        path: A file of safetensors or of ``torch.save``, whatever its ending.
        source: What names the file, for error messages: a key of the configuration and the path, or the path.

    Raises:
        MmpError: if the file is missing, damaged or of another format, or if it holds no tensors by name.
    """
    if problem := _problem_of(path):
        raise MmpError(f"{source}: {problem}")
    content = load_tensors(path) if _is_safetensors(path) else _load(path, source)
    try:
        groups = list(_groups_of(content))
    except RecursionError as error:
        raise MmpError(f"{source}: cannot be read: an object in it contains itself; {_SAVE}") from error
    if not groups:
        raise MmpError(f"{source}: contains no state_dict of plain tensors; {_SAVE}")
    return groups


def _problem_of(path: Path) -> str | None:
    """Return why a path is no file of weights, as far as its first bytes show it, or None."""
    if not path.is_file():
        return "this is a folder; name the file of the weights in it" if path.is_dir() else "no such file"
    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not start:
        return f"cannot be read: the file is empty; {_COPY}"
    reasons = [reason for first, reason in _FOREIGN.items() if start.startswith(first)]
    return f"not a checkpoint: {reasons[0]}" if reasons and not _has_header(path) else None


def _is_safetensors(path: Path) -> bool:
    return _has_header(path) or (path.suffix == ".safetensors" and not _starts_with(path, (b"PK", b"\x80")))


def _has_header(path: Path) -> bool:
    """Return whether a file begins as safetensors do: with the length of the header, and JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _starts_with(path: Path, first: bytes | tuple[bytes, ...]) -> bool:
    with path.open("rb") as file:
        return file.read(8).startswith(first)


def _load(path: Path, source: str) -> Any:
    """Return the content of a file of ``torch.save``.

    Raises:
        MmpError: if the file is damaged, is not a file of ``torch.save``, or would execute code.
    """
    try:
        problem = _problem_of_archive(path)
        content = None if problem else _load_inert(path)
    except pickle.UnpicklingError as error:
        raise MmpError(f"{source}: cannot be read: {_sentence(error)}; {_SAVE}") from error
    except BadZipFile as error:
        raise MmpError(f"{source}: cannot be read: the file is cut off or damaged; {_COPY}") from error
    except Exception as error:  # a damaged pickle can raise any exception
        reason = f"it is damaged, or not a file of torch.save ({_sentence(error)})"
        raise MmpError(f"{source}: cannot be read: {reason}; {_COPY}") from error
    if problem:
        raise MmpError(f"{source}: {problem}")
    return content


def _load_inert(path: Path) -> Any:
    with warnings.catch_warnings(), path.open("rb") as file:  # of a path, torch.load would consider the ending
        warnings.simplefilter("ignore")  # about formats and pickle protocols that are read nevertheless
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # of an unknown class, or of a damaged file, which raises again
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=inert_pickle)


def _problem_of_archive(path: Path) -> str | None:
    """Return why an archive is no checkpoint, or None. Compares all values of a zip archive with their checksums."""
    if not _starts_with(path, b"PK\x03\x04"):
        return _problem_of_older_format(path)
    with ZipFile(path) as archive:
        files = {name.rpartition("/")[2] for name in archive.namelist()}
        damaged = archive.testzip()
    if "constants.pkl" in files:
        way_out = f"torch.save(torch.jit.load({path.name!r}).state_dict(), FILE)"
        return f"not a checkpoint: it is a TorchScript archive; save its weights with {way_out}"
    if "data.pkl" not in files:
        return "not a checkpoint: it is a zip archive of other files; unpack it, and name the file of the weights"
    return f"cannot be read: {damaged} does not match its checksum; {_COPY}" if damaged else None


def _problem_of_older_format(path: Path) -> str | None:
    """Return why a file that is no zip archive is not one of torch's format before 1.6 either, or None."""
    with path.open("rb") as file:
        start = file.read(512)
    if any(magic in start[:40] for magic in _MAGIC):
        return None
    if not start.strip(b"\0"):
        return f"cannot be read: it begins with zeros; {_COPY}"
    if start.startswith(b"\x80"):
        return (
            f"not a checkpoint: it is a pickle that torch.save did not write; load it where it was written, and {_SAVE}"
        )
    if tarfile.is_tarfile(path):
        return "not a checkpoint: it is a tar archive; unpack it, and name the file of the weights"
    return f"not a checkpoint: it is no file of safetensors or torch.save; {_SAVE}"


def _sentence(error: Exception) -> str:
    """Return the first line of an error's message, short and without terminal codes."""
    text = printable(_COLOUR.sub("", first_line(error)))
    return text if len(text) <= 160 else type(error).__name__


def _groups_of(value: Any, key: str = "", depth: int = 0) -> Iterator[Group]:
    """Yield a mapping that holds tensors, and those within it."""
    entries = _entries_of(value)
    if any(map(_is_plain, entries.values())):
        yield Group(key, entries)
    if depth < _DEPTH:
        for name, entry in entries.items():
            if not isinstance(entry, Tensor):
                yield from _groups_of(entry, f"{key}.{name}".lstrip("."), depth + 1)


def _entries_of(value: Any) -> dict[str, Any]:
    if isinstance(value, StandIn):
        return state_of(value) or _entries_of(value.items or value.state)
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    return {printable(str(name)): entry for name, entry in value.items()} if isinstance(value, Mapping) else {}


def _is_plain(value: Any) -> bool:
    if type(value) not in (Tensor, nn.Parameter):
        return False
    return value.layout is torch.strided and not (value.is_nested or value.is_meta or value.is_quantized)
