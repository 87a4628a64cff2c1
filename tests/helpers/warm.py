"""Commands in processes forked from one that has already imported torch and Lightning, which takes seconds."""

from __future__ import annotations

import functools
import gc
import importlib
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

LIMIT = 900.0  # seconds for any command; generous, since a shared machine is slow


def run(command: Sequence[str], environment: Mapping[str, str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``python SCRIPT ARGUMENT...`` or ``python -m MODULE ARGUMENT...`` to its end.

    Variables that Python reads only at its start, such as ``PYTHONPATH``, have no effect.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        request = {"command": command, "environment": dict(environment), "cwd": str(cwd), "files": [str(out), str(err)]}
        code = _answer(json.dumps(request))
        outputs = [path.read_text() if path.exists() else "" for path in (out, err)]
        if code is None:
            raise subprocess.TimeoutExpired(list(command), LIMIT, *outputs)
        return subprocess.CompletedProcess(list(command), code, *outputs)


def _answer(request: str) -> int | None:
    """Return the exit code of a command, None if it takes too long.

    In that case, and if the parent process dies, all its processes are killed.
    """
    if _server().poll() is not None:
        _server.cache_clear()
    server, code = _server(), ""
    try:
        server.stdin.write(f"{request}\n")
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
    """Start the process from which commands are forked; it ends when this process closes the pipe to it."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=environment, start_new_session=True, **pipes)


# What commands import beyond the modules of a run, by the module of the command.
_LIBRARIES = {
    "mmp.export": ("onnx", "onnxscript"),  # onnxruntime starts a thread, and a fork loses threads
    "prune.py": ("callbacks.multirun", "matplotlib.figure", "plotly.graph_objects", "sklearn.datasets"),
}


def _serve() -> None:
    import mmp.commands
    import mmp.runs.prune  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        _prepare(request["command"])
        child = os.fork()
        if not child:
            _become(**request)
            return
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(1, f"{code}\n".encode())


def _prepare(command: list[str]) -> None:
    """Import the libraries of a command before it is forked, so that its next process has them."""
    name = command[1] if command[0] == "-m" else Path(command[0]).name
    for library in _LIBRARIES.pop(name, ()):
        importlib.import_module(library)
    threads = Path("/proc/self/task")
    if threads.exists() and len(list(threads.iterdir())) > 1:
        raise RuntimeError(f"{name}: a library started a thread, which forked processes would wait for")
    gc.freeze()  # otherwise a collection in a child would copy the memory pages of all these objects


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
