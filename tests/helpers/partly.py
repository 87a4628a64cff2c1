"""Parameters of tests of which only some are quick."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def partly_slow(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Return all values as parameters, with those that are not quick marked as slow."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]
