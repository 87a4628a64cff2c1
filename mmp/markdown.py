"""Markdown: tables, and text with its special characters escaped."""

from __future__ import annotations

from collections.abc import Sequence


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table.

    Args:
        headings: One heading per column.
        rows: One cell per column, as Markdown. Text from a file must be :func:`escaped` first.
    """
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escaped(text: str) -> str:
    """Return text on one line, with the special characters of Markdown escaped."""
    flat = " ".join(text.split()).replace("\\", "\\\\")
    for special in "|*_<>[]`":
        flat = flat.replace(special, f"\\{special}")
    return flat
