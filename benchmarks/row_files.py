"""Files of measured rows, a JSON line for each run. Several processes may append to one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mmp.errors import MmpError
from mmp.export.measure import processor
from mmp.files import locked, write_text

Row = dict[str, Any]


def read_rows(paths: Iterable[Path], keys: Sequence[str]) -> list[Row]:
    """Return the rows of files, those that are missing have none. Of rows with equal keys, the last one counts.

    Args:
        paths: The files.
        keys: The keys that decide what a row measures.

    Raises:
        MmpError: if a line is no row.
    """
    found = {}
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                found[tuple(row[key] for key in keys)] = row
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


def merge(paths: Iterable[Path], into: Path, keys: Sequence[str]) -> None:
    """Add the rows of files to another file, unless they are there.

    Raises:
        MmpError: if there is no such file, or it has other lines.
    """
    for path in paths:
        if not path.is_file():
            raise MmpError(f"{path}: no such file of rows")
        present = read_rows([into], keys)
        append(into, [row for row in read_rows([path], keys) if row not in present])


def is_measured(known: Row, rows: Iterable[Row]) -> bool:
    """Return whether there is a row with the keys ``known``."""
    return any(known.items() <= row.items() for row in rows)


def share_of(runs: Iterable[Row], share: str) -> Iterator[Row]:
    """Return a share of runs, for one of several processes: ``1/5`` is the second, the seventh, and so on.

    Raises:
        MmpError: if the share is no such fraction.
    """
    first, _, count = share.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise MmpError(f"share={share}: must be a number of a process and the number of processes, such as 0/4")
    return (run for number, run in enumerate(runs) if number % int(count) == int(first))


def origin() -> Row:
    """Return where a row is measured."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}


def run_command(
    words: Sequence[str],
    measure: Callable[[Sequence[str]], None],
    report: Callable[[Sequence[Row]], None],
    path: Path,
    keys: Sequence[str],
    usage: str,
) -> None:
    """Run the command of a benchmark: ``measure WORD...``, ``merge FILE...`` or ``report``.

    Args:
        words: The words of the command line.
        measure: Measures what its words ask for.
        report: Writes the report on all rows.
        path: The benchmark's file of rows.
        keys: The keys that decide what a row measures.
        usage: What the error says if there is no such command.

    Raises:
        MmpError: if there is no such command.
    """
    if words[:1] == ["measure"]:
        measure(words[1:])
    elif words[:1] == ["merge"] and words[1:]:
        merge(map(Path, words[1:]), path, keys)
    elif list(words) == ["report"]:
        report(read_rows([path], keys))
    else:
        raise MmpError(usage)
