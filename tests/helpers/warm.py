"""Commands as processes of their own, forked from one that has imported what they all import, which takes seconds."""

from __future__ import annotations

import functools
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from places import ROOT

LIMIT = 900.0  # seconds of any command, far more than one needs; a shared machine is slow


def run(command: Sequence[str], environment: Mapping[str, str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``SCRIPT ARGUMENT...`` or ``-m MODULE ARGUMENT...`` of Python to its end.

    The process is like a new one but for what is set before Python starts, such as ``PYTHONPATH``.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        asked = {"command": command, "environment": dict(environment), "cwd": str(cwd), "files": [str(out), str(err)]}
        code = _answer(json.dumps(asked))
        said = [path.read_text() if path.exists() else "" for path in (out, err)]
        if code is None:
            raise subprocess.TimeoutExpired(list(command), LIMIT, *said)
        return subprocess.CompletedProcess(list(command), code, *said)


def _answer(asked: str) -> int | None:
    """Return the exit code of a command, None if it takes too long; then, and if its parent dies, all end with it."""
    if _server().poll() is not None:
        _server.cache_clear()
    server, code = _server(), ""
    try:
        server.stdin.write(f"{asked}\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], LIMIT)[0]:
            return None
        code = server.stdout.readline()
    finally:
        if not code:
            _server.cache_clear()
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    if not code:
        raise RuntimeError("the process that commands are forked from has died")
    return int(code)


@functools.cache
def _server() -> Any:
    """Start the process that others are forked from; it ends with this one, whose pipe then closes."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=environment, start_new_session=True, **pipes)


def _serve() -> None:
    import mmp.runs.prune  # noqa: F401

    gc.freeze()  # or every child copies these objects, to find out at its end that they are garbage
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            _become(**asked)
            return
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(1, f"{code}\n".encode())


def _become(command: list[str], environment: dict[str, str], cwd: str, files: list[str]) -> None:
    for number, path in enumerate([os.devnull, *files]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    module = command[0] == "-m"
    sys.argv = command[module:]
    sys.path[0] = cwd if module else str(Path(cwd, command[0]).parent)
    if module:
        sys.modules.pop(command[1], None)
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    _serve()
