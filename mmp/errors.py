"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmpError(Exception):
    """Bad input, told in one sentence: what is wrong, where it is, and the way out.

    The command line prints its message without a traceback and exits with code 1.
    """


def nearest(word: str, choices: Iterable[str], what: str = "choose") -> str:
    """Return the end of an error message: the nearest valid choice, then all of them.

    Args:
        word: What the user wrote.
        choices: What would have been valid.
        what: The verb before the list.

    Returns:
        A phrase such as ``did you mean 'balanced'? choose from: aggressive, balanced``.
    """
    names = sorted(choices)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    listing = f"{what} from: {', '.join(names)}" if names else "there are none"
    return f"did you mean {close[0]!r}? {listing}" if close else listing
