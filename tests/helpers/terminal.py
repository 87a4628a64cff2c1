"""A pseudo-terminal for tests, which runs a command and records what its screen shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte


@dataclass
class Session:
    """The outcome of a command in a terminal.

    Attributes:
        code: The exit code.
        screens: The content of the screen after every change.
        lines: All lines at the end, with those that have scrolled off the screen.
        cursor: Whether the cursor is visible at the end.
    """

    code: int
    screens: list[str]
    lines: list[str]
    cursor: bool


def play(
    command: Sequence[str],
    cwd: Path,
    environment: dict[str, str],
    interrupt: Callable[[str], bool] = lambda _: False,
    limit: float = 120,
    columns: int = 120,
    rows: int = 20,
) -> Session:
    """Run a command in a terminal until it ends.

    Args:
        command: The command.
        cwd: The working folder.
        environment: The environment variables.
        interrupt: Called with the content of the screen until it returns True; then Ctrl-C is pressed, once.
        limit: Seconds after which the command is killed, which fails the test.
        columns: Width of the terminal.
        rows: Height of the terminal.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    screen = pyte.HistoryScreen(columns, rows, history=10_000)
    stream = pyte.ByteStream(screen)
    variables = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    variables |= {"TERM": "xterm-256color"}
    screens, pressed, end = [""], False, time.monotonic() + limit
    process = subprocess.Popen(
        command, cwd=cwd, env=variables, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        while time.monotonic() < end:
            ended = process.poll() is not None
            if not select.select([ours], [], [], 2.0 if ended else 0.1)[0]:  # child processes may still write
                if ended:
                    break
                continue
            try:
                written = os.read(ours, 65536)
            except OSError:  # no process has the terminal open any more
                break
            stream.feed(written)
            seen = "\n".join(line.rstrip() for line in screen.display)
            if seen != screens[-1]:
                screens.append(seen)
            if not pressed and interrupt(seen):
                pressed = True
                os.killpg(process.pid, signal.SIGINT)
        code = process.wait(max(end - time.monotonic(), 0.1))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        os.close(ours)
    gone = ["".join(row[column].data for column in range(columns)) for row in screen.history.top]
    lines = [line.rstrip() for line in [*gone, *screen.display]]
    return Session(code, screens, lines, not screen.cursor.hidden)
