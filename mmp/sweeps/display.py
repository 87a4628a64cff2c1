"""The display of a running sweep: a live region in a terminal, occasional plain lines elsewhere.

No output of a process can disturb the region. While it is shown, standard output and standard error of this process and
of its workers are redirected into a pipe, and everything read from the pipe is printed above the region. Python's own
stream objects are not replaced, so a process that is forked while something is drawn inherits no held lock. If this
process is killed, a separate process prints the rest of the pipe, such as an error message.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmp.runs.terminal import PIPE, pipe_name
from mmp.sweeps.progress import JobProgress, Progress, State

if TYPE_CHECKING:
    from rich.console import RenderableType


log = logging.getLogger(__name__)
_PAUSE = 0.5  # seconds between two updates
_BAR = 12  # width of a progress bar, in characters
_SHARE = 0.05  # the largest share of the time that updates may take


def watch(folder: Path, jobs: Sequence[Sequence[str]] | None, live: bool, every: float | None) -> Display | None:
    """Start the display of a sweep.

    Args:
        folder: The sweep's folder.
        jobs: The overrides of each of its jobs, None if unknown.
        live: Whether to show a live region, if there is a terminal.
        every: Seconds between plain lines, if there is no live region; None for no lines.

    Returns:
        The display, which the caller has to stop; None if there is nothing to show.
    """
    terminal = os.isatty(1) and os.isatty(2) and os.environ.get("TERM", "dumb") != "dumb"
    if not (live and terminal) and every is None:
        return None
    progress = Progress(folder, jobs)
    display = Region(progress) if live and terminal else Lines(progress, every or 0.0)
    display.start()
    atexit.register(display.stop)  # on Ctrl-C, Hydra does not call its callbacks
    return display


class Display(ABC):
    """Shows the progress of a sweep from a separate thread. A failure is logged once, and the sweep goes on.

    Args:
        progress: The progress of the sweep.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._woken, self._waker = os.pipe()

    def start(self) -> None:
        """Start the display."""
        self._thread.start()

    def stop(self) -> None:
        """Show the final state and end the display. Further calls do nothing."""
        atexit.unregister(self.stop)
        if self._thread.is_alive():
            os.write(self._waker, b".")
            self._thread.join(timeout=10)  # a blocked terminal must not block the sweep

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:
            self._fail(f"the progress display has stopped: {type(error).__name__}: {error}")

    def _follow(self) -> None:
        woken = False
        while not woken:
            start = time.monotonic()
            self._show(self._progress.update())
            woken = self._pause(start + max(_PAUSE, (time.monotonic() - start) / _SHARE))
        ended = self._progress.update()
        self._progress.end()
        self._show(ended)

    def _pause(self, until: float) -> bool:
        """Wait until a point in time, or until :meth:`stop` is called; return whether it was called."""
        return bool(select.select([self._woken], [], [], max(until - time.monotonic(), 0))[0])

    @abstractmethod
    def _show(self, ended: Sequence[JobProgress]) -> None:
        """Show the current state.

        Args:
            ended: The jobs that have ended since the last call.
        """

    def _fail(self, message: str) -> None:
        log.warning(message)


class Lines(Display):
    """Prints a plain line with the state of the sweep when it has changed, and when the first job fails.

    Args:
        progress: The progress of the sweep.
        every: The least number of seconds between two lines.
    """

    def __init__(self, progress: Progress, every: float) -> None:
        super().__init__(progress)
        self._every, self._printed, self._due, self._failed = every, "", time.monotonic() + every, False

    def _show(self, ended: Sequence[JobProgress]) -> None:
        state = self._progress.state
        first = not self._failed and any(job.status == "failed" for job in ended)
        if not first and (time.monotonic() < self._due or state.counts == self._printed):
            return
        self._printed, self._due, self._failed = state.counts, time.monotonic() + self._every, state.failed > 0
        sys.stdout.write(f"sweep: {state.line}\n")
        sys.stdout.flush()


class Region(Display):
    """A live region with a line per running job and one for the sweep. Ended jobs are printed above it.

    Args:
        progress: The progress of the sweep.
    """

    def start(self) -> None:
        """Redirect standard output and error into the pipe, and start the display."""
        self._terminals = (os.dup(1), os.dup(2))
        self._pipe, entrance = os.pipe()  # stays open here, since a pipe without a writer is at its end
        self._drain = self._start_drain()
        self._part = b""  # the beginning of an incomplete line
        os.environ[PIPE] = pipe_name(entrance)
        _flush()
        self._redirect(entrance, entrance)
        super().start()

    def stop(self) -> None:
        """Restore standard output and error, and end the display.

        The pipe stays open, so that a worker that still writes into it does not fail.
        """
        os.environ.pop(PIPE, None)
        _flush()
        self._redirect(*self._terminals)
        super().stop()
        self._drain.kill()
        self._drain.wait()

    def _start_drain(self) -> subprocess.Popen[bytes]:
        """Start a process that waits for the end of this one and then prints the rest of the pipe."""
        command = ["sh", "-c", f"read -r never; echo; exec cat /dev/fd/{self._pipe}"]
        return subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=self._terminals[1], stderr=subprocess.DEVNULL,
            pass_fds=[self._pipe], start_new_session=True,  # Ctrl-C must not end it
        )  # fmt: skip

    @staticmethod
    def _redirect(out: int, error: int) -> None:
        os.dup2(out, 1)
        os.dup2(error, 2)

    def _follow(self) -> None:
        from rich.console import Console
        from rich.live import Live

        with os.fdopen(os.dup(self._terminals[0]), "w", encoding=sys.stdout.encoding, errors="replace") as file:
            self._console = Console(file=file)
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            with self._live:
                self._console.show_cursor()  # a killed process could not restore a hidden cursor
                super()._follow()
                self._print_pipe(last=True)

    def _pause(self, until: float) -> bool:
        while (left := until - time.monotonic()) > 0:
            readable = select.select([self._woken, self._pipe], [], [], left)[0]
            if self._woken in readable:
                return True
            if readable:
                time.sleep(0.02)  # more lines usually follow the first
                self._print_pipe()
        return False

    def _print_pipe(self, last: bool = False) -> None:
        """Print complete lines from the pipe. Of a line redrawn with carriage returns, print only its last state."""
        from rich.text import Text

        written = self._part + self._read()
        whole, _, part = (written + b"\n" if last and written else written).rpartition(b"\n")
        self._part = part.rpartition(b"\r")[2]
        drawn = [(line, line.rstrip(b"\r").rpartition(b"\r")[2]) for line in whole.split(b"\n")] if whole else []
        lines = [kept.decode(errors="replace") for line, kept in drawn if kept.strip() or b"\r" not in line]
        if lines:
            self._console.print(Text.from_ansi("\n".join(lines)), soft_wrap=True)

    def _read(self) -> bytes:
        filled = select.select([self._pipe], [], [], 0)[0]
        return os.read(self._pipe, 1 << 16) if filled else b""  # the capacity of a pipe

    def _show(self, ended: Sequence[JobProgress]) -> None:
        from rich.text import Text

        columns, rows = os.get_terminal_size(self._terminals[0])
        self._console.size = columns or 80, rows or 24
        self._print_pipe()
        for job in ended:
            if job.status != "skipped":  # there may be hundreds, so they are only counted
                self._console.print(Text(job.line, "red" if job.status == "failed" else ""), soft_wrap=True)
        self._live.update(render_region(self._progress.state, rows or 24), refresh=True)

    def _fail(self, message: str) -> None:
        """Copy the pipe to the terminal from here on, since jobs must not wait for a pipe that nobody reads."""
        os.environ.pop(PIPE, None)
        self._redirect(*self._terminals)
        self._copy(f"\n{message}\n".encode())  # not logged, since a logger may be waiting for the pipe
        while True:
            readable = select.select([self._woken, self._pipe], [], [])[0]
            if self._pipe in readable:
                self._copy(self._read())
            elif readable:
                return

    def _copy(self, written: bytes) -> None:
        with contextlib.suppress(OSError):  # the terminal was closed
            os.write(self._terminals[1], written)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def render_region(state: State, rows: int) -> RenderableType:
    """Return the live region as a rich renderable.

    Args:
        state: The state of the sweep.
        rows: Number of rows of the terminal; jobs that do not fit are only counted.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    most = max(rows - 4, 1)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(no_wrap=True, min_width=17)
    table.add_column(no_wrap=True, min_width=_BAR)
    table.add_column(no_wrap=True, min_width=7, justify="right")
    table.add_column(no_wrap=True, min_width=5, justify="right")
    for job in state.running[:most]:
        fraction, accuracy = job.latest.get("fraction"), job.latest.get("accuracy")
        table.add_row(
            job.name,
            job.phase,
            "" if fraction is None else ProgressBar(total=1.0, completed=fraction, width=_BAR),
            "" if accuracy is None else f"{100 * accuracy:.1f} %",
            clock(state.now - job.since),
        )
    more = len(state.running) - most
    return Group(
        *([table] if state.running else []),
        *([Text(f"and {more} more")] if more > 0 else []),
        Text(f"sweep: {state.line}, {clock(state.elapsed)} so far", "bold"),
    )


def clock(seconds: float) -> str:
    """Return a duration as ``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
