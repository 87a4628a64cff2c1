"""The process from which the commands of tests are forked."""

from __future__ import annotations

import functools
import subprocess
import time
from typing import Any

import pytest
import warm


@pytest.mark.slow
def test_a_parent_that_dies_is_an_error_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = iter(["read line", "read line; echo 3; read line; echo 4", "read line; echo 5; sleep 60"])

    @functools.cache
    def server() -> Any:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen(["sh", "-c", next(scripts)], start_new_session=True, **pipes)

    monkeypatch.setattr(warm, "_server", server)
    with pytest.raises(RuntimeError, match="forked from has died"):
        warm.run(["prune.py"], {})
    assert [warm.run(["prune.py"], {}).returncode for _ in range(2)] == [3, 4]
    server().wait(60)  # it ends between two commands
    assert warm.run(["prune.py"], {}).returncode == 5
    monkeypatch.setattr(warm, "LIMIT", 0.5)
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(["prune.py"], {})
    assert time.monotonic() - start < 30
    assert server.cache_info().currsize == 0
