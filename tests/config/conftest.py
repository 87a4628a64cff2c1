from __future__ import annotations

from collections.abc import Iterator

import pytest
from composing import registered
from hydra import initialize_config_dir
from places import CONF


@pytest.fixture
def hydra() -> Iterator[None]:
    """Let ``hydra.compose`` read the real configuration files."""
    registered()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
