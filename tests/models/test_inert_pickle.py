"""The pickle module that executes nothing: no opcode of a pickle reaches code outside a list of functions."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmp.models import inert_pickle


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def loaded(content: bytes) -> Any:
    return inert_pickle.load(io.BytesIO(content))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", ["system", "eval", "exec", "popen", "run", "open", "touch", "import", "hub", "load"])
def test_no_call_is_executed(name: str, protocol: int, tmp_path: Path) -> None:
    made = tmp_path / "executed"
    code = f"open({str(made)!r}, 'w')"
    call = {
        "system": Call(os.system, f"touch {made}"),
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "popen": Call(subprocess.Popen, ["touch", str(made)]),
        "run": Call(subprocess.run, ["touch", str(made)]),
        "open": Call(builtins.open, str(made), "w"),
        "touch": Call(Path.touch, made),
        "import": Call(builtins.__import__, "antigravity"),
        "hub": Call(torch.hub.load, "a", "b"),
        "load": Call(torch.load, str(made)),
    }[name]
    content = pickle.dumps({"weight": call}, protocol)
    try:
        value = loaded(content)["weight"]
    except pickle.UnpicklingError as error:
        assert "executed" in str(error) or "torch.save does not write" in str(error)  # noqa: PT017
    else:
        assert isinstance(value, inert_pickle.StandIn)
    assert not made.exists()
    assert "antigravity" not in sys.modules


HOSTILE = {
    "instance": b"(ios\nsystem\n(S'touch executed'\no.",
    "inst": b"(S'touch executed'\nios\nsystem\n.",
    "extension": b"\x80\x02\x82\x01.",
    "outside": b"\x80\x02U\x04pathQ.",
    "text reference": b"Pstorage\n.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_rare_instructions_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        loaded(HOSTILE[name])
    assert not (tmp_path / "executed").exists()


def test_state_changes_no_class_and_no_function() -> None:
    """BUILD on a class or a function would set its attributes for the whole process."""
    state = b"}X\x05\x00\x00\x00stateK\x01s"
    for target in (b"ctorch.nn.parameter\nParameter\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cx\ny\n"):
        for content in (b"\x80\x02" + target + state + b"b.", b"\x80\x02" + target + b"N" + state + b"\x86b."):
            assert not hasattr(loaded(content), "state")


def test_an_unknown_class_is_not_imported() -> None:
    content = b"\x80\x02cantigravity\nFlyer\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    value = loaded(content)
    assert "antigravity" not in sys.modules
    assert (type(value).__module__, type(value).__name__, value.state) == ("antigravity", "Flyer", {"a": 1})
