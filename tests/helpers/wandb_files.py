"""Reads the file of an offline W&B run: records in LevelDB's log format, each a protobuf message."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import ArtifactRecord, Record

_BLOCK, _FILE_HEADER, _RECORD_HEADER = 32 * 1024, 7, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a ``.wandb`` file; any damage is an AssertionError."""
    content = path.read_bytes()
    mark, magic, _version = struct.unpack("<4sHB", content[:_FILE_HEADER])
    assert (mark, magic) == (b":W&B", 0xBEE1)
    position, pieces = _FILE_HEADER, b""
    while position < len(content):
        room = _BLOCK - position % _BLOCK
        if room < _RECORD_HEADER:  # no room for another header
            position += room
            continue
        checksum, length, kind = struct.unpack("<IHB", content[position : position + _RECORD_HEADER])
        position += _RECORD_HEADER
        data = content[position : position + length]
        position += length
        assert len(data) == length
        assert zlib.crc32(bytes([kind]) + data) == checksum
        pieces = data if kind in (_FULL, _FIRST) else pieces + data
        if kind in (_FULL, _LAST):
            yield Record.FromString(pieces)
        else:
            assert kind in (_FIRST, _MIDDLE)


@dataclass
class OfflineRun:
    """One offline run, read from its records.

    Attributes:
        history: The logged values, step by step.
        inputs: Names of the artifacts that the run uses.
        outputs: Names of the artifacts that the run has produced, without W&B's own tables.
        artifacts: Type, digest and files (name -> path) of both kinds, by name.
    """

    folder: Path
    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    artifacts: dict[str, tuple[str, str, dict[str, str]]] = field(default_factory=dict)
    exit_code: int | None = None

    def table(self, key: str) -> list[dict[str, Any]]:
        """Return the rows of a logged table."""
        (path,) = self.curve(f"{key}.path")
        content = json.loads((self.folder / "files" / path).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]

    def curve(self, key: str) -> list[Any]:
        """Return the values of a metric, step by step."""
        return [row[key] for row in self.history if key in row]


def read_run(folder: Path) -> OfflineRun:
    """Read the run in one of W&B's ``offline-run-*`` folders."""
    run = OfflineRun(folder)
    (path,) = folder.glob("run-*.wandb")
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                new = record.run
                run.id, run.name, run.project = new.run_id, new.display_name, new.project
                run.group, run.job_type, run.tags = new.run_group, new.job_type, list(new.tags)
                run.config |= _values(new.config.update)
            case "config":
                run.config |= _values(record.config.update)
            case "history":
                run.history.append(_values(record.history.item))
            case "summary":
                run.summary |= _values(record.summary.update)
            case "artifact":
                _add(run, record.artifact)
            case "exit":
                run.exit_code = record.exit.exit_code
    return run


def _add(run: OfflineRun, record: ArtifactRecord) -> None:
    if record.type == "run_table":
        return
    (run.inputs if record.use_after_commit else run.outputs).append(record.name)
    files = {entry.path: entry.local_path for entry in record.manifest.contents}
    run.artifacts[record.name] = (record.type, record.digest, files)


def _values(items: Iterable[Any]) -> dict[str, Any]:
    """Return the values by key; nested keys are joined by dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Return every offline run below a folder, by name."""
    runs = [read_run(path) for path in folder.rglob("offline-run-*") if path.is_dir()]
    return sorted(runs, key=lambda run: run.name)
