"""Numbers as text, and their places on the pages of ``docs``."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmp.errors import MmpError
from mmp.files import write_text
from mmp.report.verdict import paired_interval

NOTHING = "Not measured."


def fill_page(path: Path, tables: Mapping[str, str]) -> None:
    """Write tables into a page, each between the comment with its name and the comment ``end``.

    Raises:
        MmpError: if the page has no such comments.
    """
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = fill(text, name, table)
    write_text(path, text)


def fill(page: str, name: str, table: str) -> str:
    """Return the text of a page with a table between the comment with its name and the comment ``end``.

    Raises:
        MmpError: if the page has no such comments.
    """
    begin, end = f"<!-- {name} -->\n", "\n<!-- end -->"
    before, found, after = page.partition(begin)
    if not found or end not in after:
        raise MmpError(f"the page has no place for {name!r}; add the lines {begin.strip()} and {end.strip()}")
    return before + begin + table + after[after.index(end) :]


def threads_of(count: int) -> str:
    """Return a number of threads as text."""
    return "1 thread" if count == 1 else f"{count} threads"


def spread(values: Iterable[float]) -> str:
    """Return mean and standard deviation as text."""
    found = list(values)
    return f"{statistics.fmean(found):.2f}" + (f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else "")


def difference(values: Sequence[float]) -> str:
    """Return the mean of paired differences as text, with half the width of its 95 % interval if there are several."""
    if len(values) == 1:
        return f"{values[0]:+.2f}"
    better, noise = paired_interval(values)
    return f"{better:+.2f} ± {noise:.2f}"
