"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmpError(Exception):
    """Bad input, told in one sentence: what is wrong, where it is, and the way out.

    The command line prints its message without a traceback and exits with code 1.
    """

    def __str__(self) -> str:
        """Return the sentence; a worker process of a data loader hands it over at the end of its traceback."""
        return super().__str__().rpartition(f"{__name__}.{type(self).__name__}: ")[2].strip()


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return the end of an error message: the nearest valid choices, and all of them if they are at most 25.

    Args:
        word: What the user wrote.
        choices: What would have been valid.

    Returns:
        A phrase such as ``did you mean 'balanced'? choose from: aggressive, balanced``.
    """
    names = sorted(choices)
    if not names:
        return "there are none"
    few = len(names) <= 25
    close = difflib.get_close_matches(word, names, n=1 if few else 3, cutoff=0.5)
    parts = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
    if few:
        parts.append(f"choose from: {', '.join(names)}")
    elif not close:
        parts.append(f"none of {len(names)} is close; they begin with {', '.join(names[:3])}")
    return " ".join(parts)
