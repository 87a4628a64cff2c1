"""CUDA's multi-process service: a script stands for its program, and writes down what it is asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.gpu_sharing import CONTROL, start_service, stop_service

PROGRAM = """#!/bin/sh
if [ "$1" = -d ]; then
    echo start >> "$CUDA_MPS_LOG_DIRECTORY/asked"; touch "$CUDA_MPS_PIPE_DIRECTORY/control"; exit {code}
fi
read request; echo "$request" >> "$CUDA_MPS_LOG_DIRECTORY/asked"
test -e "$CUDA_MPS_PIPE_DIRECTORY/control" || exit 1
[ "$request" = quit ] && rm "$CUDA_MPS_PIPE_DIRECTORY/control" || true
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for pipes; the program is the first on the path."""
    write_program(tmp_path / CONTROL)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "pipes"


def write_program(path: Path, code: int = 0) -> None:
    path.write_text(PROGRAM.format(code=code))
    path.chmod(0o755)


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().split()


def test_the_service_is_started_once_and_stopped(folder: Path) -> None:
    places = start_service(folder)
    assert places == {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    assert start_service(folder) == places
    stop_service(folder)
    assert asked(folder) == ["get_server_list", "start", "get_server_list", "quit"]


def test_a_service_that_does_not_start_is_not_used(folder: Path, tmp_path: Path) -> None:
    write_program(tmp_path / CONTROL, code=1)
    assert start_service(folder) == {}


def test_a_machine_without_the_service_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start_service(tmp_path / "pipes") == {}
    stop_service(tmp_path / "pipes")
    assert not (tmp_path / "pipes").exists()
