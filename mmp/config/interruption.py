"""Ctrl-C and SIGTERM: one exception for both, and the lines with which a command ends."""

from __future__ import annotations

import functools
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

P = ParamSpec("P")

CTRL_C, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit codes, as a shell would report them


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with the line that a command prints.

    Args:
        note: The line.
        code: The exit code of the command.
    """

    def __init__(self, note: str = "", code: int = CTRL_C) -> None:
        super().__init__(note)
        self.code = code

    @classmethod
    def by(cls, error: KeyboardInterrupt, note: str) -> Interrupted:
        """Return the same interruption with a line that begins with its kind: ``interrupted`` or ``terminated``."""
        code = code_of(error)
        return cls(f"{'terminated' if code == TERMINATED else 'interrupted'}{note}", code)

    @classmethod
    def by_full_disk(cls, reason: str) -> Interrupted:
        """Return an interruption for lack of space, with the end of its line."""
        return cls(f"; {reason}; free some space", code=1)


def code_of(error: KeyboardInterrupt) -> int:
    """Return the exit code of a command that ends with an exception."""
    return getattr(error, "code", CTRL_C)


def catch_termination() -> None:
    """Raise :class:`Interrupted` in this process when SIGTERM arrives, unless the signal has a handler already."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


def _terminated(*_: Any) -> None:
    raise Interrupted(code=TERMINATED)


def ignore_further() -> None:
    """Ignore Ctrl-C and SIGTERM from here on, while the process ends."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block Ctrl-C in a ``with`` block: in this thread until its end, in processes that are started there for good.

    A process that starts others like this has to end them itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_one_line(main: Callable[P, int]) -> Callable[P, int]:
    """Decorate the function of a command so that Ctrl-C ends it with one line and exit code 130."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt as error:
            ignore_further()
            sys.stderr.write(f"{str(error) or 'interrupted'}\n")
            return code_of(error)

    return run


def as_typed() -> str:
    """Return the command line of this process, for a shell."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program, python = sys.argv[0], sys.orig_argv[0]
    if module is not None:
        start = [python, "-m", module.name.removesuffix(".__main__")]
    elif program.endswith(".py"):
        start = [python, program]
    else:
        start = [Path(program).name if shutil.which(Path(program).name) else program]
    return shlex.join([*start, *sys.argv[1:]])
