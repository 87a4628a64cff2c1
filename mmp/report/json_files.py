"""JSON files of runs, as reports read them: objects whose strings any file and terminal can take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mmp.errors import MmpError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def content_of(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        MmpError: if the file cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MmpError(f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise MmpError("not a JSON object")
    return _cleaned(content)


def _cleaned(content: Any) -> Any:
    """Replace control characters and lone surrogates in all strings, which files and terminals cannot take."""
    if isinstance(content, str):
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", content)
    if isinstance(content, list):
        return [_cleaned(value) for value in content]
    if isinstance(content, dict):
        return {_cleaned(key): _cleaned(value) for key, value in content.items()}
    return content
