"""The exception whose message is meant for the user, and what messages consist of."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_MOST_LISTED = 25  # choices that fit into one message
_MOST_NAMED = 8  # names that one phrase lists
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class MmpError(Exception):
    """Invalid input. The message says in one line what is wrong, where it is, and what to do.

    The command line prints the message without a traceback and exits with code 1.
    """

    def __str__(self) -> str:
        """Return the message alone, also if a data loader's worker has put its traceback in front of it."""
        message = super().__str__().rpartition(f"{__name__}.{type(self).__name__}: ")[2].strip()
        return _printable(message)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return the end of an error message: the valid choices that are closest to a word, or a list of all of them.

    All choices are listed if there are at most 25.

    Args:
        word: The invalid input.
        choices: The valid inputs.

    Returns:
        A phrase such as ``did you mean 'balanced'? choose from: aggressive, balanced``.
    """
    names = sorted(choices)
    if not names:
        return "there are no choices"
    few = len(names) <= _MOST_LISTED
    close = difflib.get_close_matches(word, names, n=1 if few else 3, cutoff=0.5)
    parts = [f"did you mean {' or '.join(map(repr, close))}?"] if close else []
    if few:
        parts.append(f"choose from: {', '.join(names)}")
    elif not close:
        parts.append(f"none of the {len(names)} choices is similar; the first are {', '.join(names[:3])}")
    return " ".join(parts)


def listed(names: Iterable[str], most: int = _MOST_NAMED) -> str:
    """Return names as one phrase: ``a, b, c``; of more than ``most``, the first and the number of the others."""
    few, more = (kept := list(map(printable, names)))[:most], len(kept) - most
    return ", ".join(few) + (f" and {more} more" if more > 0 else "")


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line, or the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def printable(name: str) -> str:
    r"""Return a name in one plain line: control characters and bytes that are not UTF-8 become escapes like ``\n``."""
    return _printable(name).replace("\t", r"\t").replace("\n", r"\n")


def _printable(text: str) -> str:
    """Return text with escapes for bytes that are not UTF-8 and control characters, except tabs and new lines."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
