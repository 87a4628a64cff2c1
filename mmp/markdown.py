"""Markdown: a table, and text that cannot break out of one."""

from __future__ import annotations

from collections.abc import Sequence


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are Markdown, escaped by the caller where they come from a file."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escaped(text: str) -> str:
    """Return text on one line, with everything that Markdown would take for its own escaped."""
    flat = " ".join(text.split()).replace("\\", "\\\\")
    for special in "|*_<>[]`":
        flat = flat.replace(special, f"\\{special}")
    return flat
