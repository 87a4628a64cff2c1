"""What other busy processes cost: how a measured slowdown is judged."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from composing import composed
from hydra._internal.utils import get_args_parser

from benchmarks.crowded import GRID, JOB, Measurement, busy, claims, environment_of, output_of
from mmp.config.schema import PruneConfig
from mmp.config.validate import validate


def test_a_slowdown_is_compared_with_the_share_of_the_cores() -> None:
    found = [
        Measurement("step", spin, beside, seconds)
        for spin, times in {"short": (2.0, 4.0, 20.0), "default": (2.0, 40.0, 200.0)}.items()
        for beside, seconds in zip((0, 2, 8), times, strict=True)
    ]
    cells = [claim.cells() for claim in claims(found, 2)]
    assert [(row[1], row[2], row[4]) for row in cells] == [
        ("", "2", ""),
        ("at most 2.6", "2", "pass"),  # two of four busy threads: twice as long is explained
        ("at most 6.5", "10", "**miss**"),
        ("", "2", ""),
        ("", "20", ""),
        ("", "100", ""),
    ]


@pytest.mark.slow
def test_busy_processes_are_busy_and_end_with_the_block() -> None:
    with busy(1):
        time.sleep(1)
        command = ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "while True" in listed
        pid = int(next(line for line in listed.splitlines() if "while True" in line).split()[0])
    assert not os.path.exists(f"/proc/{pid}")  # noqa: PTH110


def test_a_measured_process_has_the_short_spin_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert environment_of("short")["GOMP_SPINCOUNT"] == "1000"
    assert environment_of("default")["GOMP_SPINCOUNT"] == "300000"
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


@pytest.mark.parametrize("words", [JOB, GRID])
def test_the_measured_commands_are_valid(words: tuple[str, ...]) -> None:
    parsed = get_args_parser().parse_args(words)
    assert parsed.multirun == (words is GRID)
    assert validate(composed(*(word.replace("glob(*)", "p30") for word in parsed.overrides)), PruneConfig)


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="the reason"):
        output_of([sys.executable, "-c", "raise SystemExit('the reason')"], dict(os.environ))
