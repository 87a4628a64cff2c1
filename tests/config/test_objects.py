"""Objects of users' classes: what cannot be created is refused in one line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from mmp.config.objects import instantiate
from mmp.errors import MmpError


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "class Own(:\n",
            r"its module fails while it is imported \(SyntaxError: .*own_module\.py, line 1\)\); correct the module",
        ),
        ("x = 1 / 0\n", r"its module fails while it is imported \(ZeroDivisionError: division by zero\)"),
        ("raise RuntimeError('no\\nlicence')\n", r"its module fails while it is imported \(RuntimeError: no licence\)"),
        ("import own_missing\n", "cannot be imported .*own_missing"),
        ("own = 1\n", "cannot be imported .*Own"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_module.py").write_text(text)
    importlib.invalidate_caches()
    try:
        with pytest.raises(MmpError, match=rf"signal\._target_=own_module\.Own: {reason}") as caught:
            instantiate({"_target_": "own_module.Own"}, "signal")
        assert "\n" not in str(caught.value)
    finally:
        sys.modules.pop("own_module", None)
