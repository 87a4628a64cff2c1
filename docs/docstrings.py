"""Prepares docstrings for the API page, as an extension of Griffe: mkdocs.yml names it.

Roles of Sphinx (:func:`mmp.prune`) become code, and examples become code blocks.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":\w+:`(?:~[\w.]*\.)?([\w.]+)`")  # a tilde leaves the last part of a name
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)  # Griffe knows the section "Examples" only


class PlainDocstrings(Extension):
    """Rewrites each docstring when Griffe has read its object."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub("Examples:", _ROLE.sub(r"`\1`", obj.docstring.value))
