"""Names of files that are not UTF-8 can be printed and logged."""

from __future__ import annotations

import io
import logging.config
import os
import sys
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

from mmp.config.command import printable_output
from mmp.errors import MmpError, listed
from mmp.files import as_text

NAME = os.fsdecode(b"caf\xe9.png")


def test_streams_print_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with pytest.raises(UnicodeEncodeError):
        streams[0].write(NAME)
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    printable_output()
    for stream in streams:
        stream.write(NAME)
        stream.flush()
        assert stream.buffer.getvalue() == b"caf\\udce9.png"  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    printable_output()


@pytest.mark.usefixtures("hydra")
def test_the_log_of_a_run_holds_escapes(tmp_path: Path) -> None:
    hydra = compose("prune", [], return_hydra_config=True).hydra.job_logging.handlers.file
    options = {key: hydra[key] for key in ("encoding", "errors")}
    handler = logging.FileHandler(tmp_path / "prune.log", **options)
    handler.handleError = lambda record: pytest.fail("not logged")  # type: ignore[method-assign]
    handler.emit(logging.makeLogRecord({"msg": NAME}))
    handler.close()
    assert (tmp_path / "prune.log").read_text(encoding="utf-8") == "caf\\udce9.png\n"
    assert OmegaConf.select(hydra, "class") == "logging.FileHandler"


def test_errors_and_lists_are_text() -> None:
    for text in (str(MmpError(f"{NAME}: wrong")), listed([NAME]), as_text(NAME)):
        text.encode()
    assert as_text(NAME) == r"caf\xe9.png"
    assert listed("abcdefghij") == "a, b, c, d, e, f, g, h and 2 more"


@pytest.mark.parametrize(
    "name", ["two\nlines.png", "\x1b[31mred.png", "tab\t.png", "\x9b1m.png", "return\r.png", "\x7f.png"]
)
def test_names_with_control_characters_are_one_plain_line(name: str) -> None:
    for text in (listed([name]), as_text(name), str(MmpError(f"{as_text(name)}: wrong"))):
        assert text.isprintable()
    assert "\x1b" not in str(MmpError(name))
    assert as_text("猫 é 😀 a\\b") == "猫 é 😀 a\\b"
