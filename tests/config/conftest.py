from __future__ import annotations

from collections.abc import Iterator

import pytest
from composing import files


@pytest.fixture
def hydra() -> Iterator[None]:
    """Let ``hydra.compose`` read the real configuration files."""
    with files():
        yield
