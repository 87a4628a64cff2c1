"""The rows of the one-shot benchmark, one for each run, in files that several processes may append to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS
from mmp.errors import MmpError
from mmp.export.measure import processor
from mmp.files import locked, write_text

ROWS = RESULTS / "oneshot.jsonl"
KEYS = ("network", "seed", "solved", "sparsity", "method", "images", "steps", "protocol")  # decide what is measured

Row = dict[str, Any]


def read_rows(*paths: Path) -> list[Row]:
    """Return the rows of files, those that are missing have none. Of rows with equal keys, the last one counts.

    Raises:
        MmpError: if a line is no row.
    """
    found = {}
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                found[tuple(row[key] for key in KEYS)] = row
            except (ValueError, KeyError, TypeError) as error:
                raise MmpError(f"{path}: line {number} is no row of this benchmark; remove the line") from error
    return list(found.values())


def append(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to a file at once: a process that is stopped leaves no part of a row, and others may append too.

    Args:
        path: The file; it is created if needed.
        rows: The rows.
    """
    lock = path.with_name(f".{path.name}.lock")
    with locked(lock, str(path)):
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        write_text(path, old + "".join(json.dumps(row) + "\n" for row in rows))


def is_measured(known: Row, rows: Iterable[Row]) -> bool:
    """Return whether there is a row with the keys ``known``."""
    return any(known.items() <= row.items() for row in rows)


def origin() -> Row:
    """Return where a row is measured."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
