"""Ctrl-C and SIGTERM: two lines, an exit code, and files with which the same command continues."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import warm
from misbehaving import overrides
from sweeping import ROOT, arguments, environment, statuses, sweep
from warm import LIMIT

import mmp.report.__main__ as report
from hydra_plugins import mmp_launchers
from mmp.config.command import command
from mmp.config.interruption import Interrupted, as_typed, code_of, sigint_blocked
from mmp.runs.store import RunFolder
from mmp.sweeps.progress import stamps
from mmp.sweeps.tally import Tally, tally

slow = pytest.mark.slow
LONG = ["finetune.epochs=50", *overrides(p50="slow", p70="slow", p90="slow")]
PARALLEL = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def interrupted(command: Sequence[str], after: str, number: int, times: int = 1) -> tuple[int, list[str]]:
    """Send a signal to a command's processes when it writes a text; return its exit code and the lines after that.

    Like Ctrl-C in a terminal, SIGINT reaches all processes of the command. SIGTERM reaches only the first.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    killer = threading.Timer(LIMIT, process.kill)
    killer.start()
    assert process.stdout is not None
    try:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if after in line:
                break
        else:
            raise AssertionError("".join(seen))
        for _ in range(times):
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            time.sleep(0.2)
        code, lines = process.wait(), process.stdout.read().splitlines()
    finally:
        killer.cancel()
        alive = processes_of(process.pid, patience=20)
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
    assert not alive, "a process has survived the command"
    return code, lines


def processes_of(group: int, patience: float) -> bool:
    """Return whether a group still has processes after some seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


@slow
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
@pytest.mark.parametrize("launcher", [[], PARALLEL], ids=["one process", "workers"])
def test_an_interrupted_sweep_ends_in_two_lines_and_the_same_command_continues(
    number: int, word: str, launcher: list[str], tmp_path: Path
) -> None:
    assert sweep(tmp_path, "strategy=p30", *LONG).returncode == 0
    several = arguments(tmp_path, "strategy=p30,p50,p70", *launcher, *LONG)
    code, lines = interrupted(several, "pruned to", number, times=3)
    assert code == 128 + number
    assert lines[-2:] == [
        f"{word}: 1 of 3 jobs are done, 2 are left", f"the same command continues: {shlex.join(several)}",
    ]  # fmt: skip
    assert not any("Traceback" in line or "KeyboardInterrupt" in line or "Warning" in line for line in lines)
    assert {f["status"] for f in statuses(tmp_path).values()} <= {"completed", "skipped", "running"}
    done = warm.run(["-m", "mmp.report", str(tmp_path / "sweeps" / "sweep")], environment())
    assert "0 failed" in done.stdout


@slow
def test_an_interrupted_run_names_its_last_checkpoint(tmp_path: Path) -> None:
    single = [one for one in arguments(tmp_path, "strategy=p50", *LONG) if one != "-m"]
    single += ["+callbacks.misbehave.once=" + str(tmp_path), f"hydra.run.dir={tmp_path / 'run'}"]
    (tmp_path / "slow").touch()
    code, lines = interrupted(single, "pruned to", signal.SIGINT, times=2)
    assert code == 130
    assert lines[-2:] == [
        f"interrupted; {tmp_path / 'run'} has no checkpoint yet", f"the same command continues: {shlex.join(single)}",
    ]  # fmt: skip
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"")  # such as after the first epoch
    code, lines = interrupted(single, "pruned to", signal.SIGTERM)
    assert code == 143
    assert not any("Traceback" in line for line in lines)


@slow
@pytest.mark.parametrize("launcher", [[], PARALLEL], ids=["one process", "workers"])
def test_ctrl_c_before_the_first_training_is_as_short(launcher: list[str], tmp_path: Path) -> None:
    several = arguments(tmp_path, "strategy=p50,p70", *launcher, *LONG)
    code, lines = interrupted(several, "jobs: 2, workers: 2" if launcher else "#0 :", signal.SIGINT)
    assert (code, len(lines)) == (130, 2), lines
    assert lines[0] == "interrupted: 0 of 2 jobs are done, 2 are left"


@slow
def test_ctrl_c_in_make_adds_no_line(tmp_path: Path) -> None:
    recipe = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "experiment=demo" in line)
    waiting = f"{sys.executable} {tmp_path / 'wait.py'}"
    (tmp_path / "wait.py").write_text(
        "import sys, time\ntry:\n    print('begun', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('ended')\n    sys.exit(130)\n"
    )
    (tmp_path / "Makefile").write_text("demo:\n" + recipe.replace("$(BIN)/python prune.py -m experiment=demo", waiting))
    _, lines = interrupted(["make", "-C", str(tmp_path), "--no-print-directory"], "begun", signal.SIGINT)
    # Seldom, make waits for the process once more after it has ended, and says so whatever the recipe is.
    assert [line for line in lines if not line.lower().startswith("make: *** wait")] == ["ended"]


# --- counts ---


def finish(folder: Path, name: str, status: str, *job: str) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    RunFolder(folder / name, {"overrides": list(job)}).write_status(status)


def test_jobs_of_this_and_of_earlier_sweeps_are_counted(tmp_path: Path) -> None:
    jobs = [[f"strategy=p{n}"] for n in (10, 30, 50, 70, 90)]
    finish(tmp_path, "a", "completed", "strategy=p10")
    finish(tmp_path, "b", "failed", "strategy=p30")  # is left, since the same command runs it again
    finish(tmp_path, "c", "completed", "strategy=p20")  # of another sweep
    before = dict(stamps(tmp_path))
    assert tally(tmp_path, jobs, before) == Tally(5, 1, 0)
    assert tally(tmp_path, jobs, before, force=True) == Tally(5, 0, 0)
    finish(tmp_path, "d", "failed", "strategy=p50")
    finish(tmp_path, "e", "skipped", "strategy=p70")
    finish(tmp_path, "f", "running", "strategy=p90")
    assert str(tally(tmp_path, jobs, before)) == "2 of 5 jobs are done, 1 failed, 2 are left"
    assert tally(tmp_path, jobs, before, force=True) == Tally(5, 1, 1)


def test_damaged_or_missing_files_are_jobs_that_are_left(tmp_path: Path) -> None:
    assert str(tally(tmp_path / "none", [["a=1"]], {})) == "0 of 1 jobs are done, 1 is left"
    finish(tmp_path, "a", "completed", "a=1")
    (tmp_path / "a" / "status.json").write_text("{")
    assert tally(tmp_path, [["a=1"]], {}) == Tally(1, 0, 0)


# --- lines and codes ---


@pytest.mark.parametrize(
    ("raised", "resumes", "code", "first"),
    [
        (KeyboardInterrupt(), False, 130, "interrupted"),
        (KeyboardInterrupt(), True, 130, "interrupted"),
        (Interrupted(code=143), True, 143, "terminated"),
        (Interrupted("interrupted: 3 of 4"), True, 130, "interrupted: 3 of 4"),
    ],
)
def test_a_command_ends_with_its_lines(
    raised: BaseException, resumes: bool, code: int, first: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["tool.py", "-m", "strategy=glob(*)"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which a command sets for good

    def fail() -> None:
        raise raised

    with pytest.raises(SystemExit) as ended:
        command(fail, resumes)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a second Ctrl-C does not disturb the end
    assert ended.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == first
    assert lines[1:] == ([f"the same command continues: {as_typed()}"] if resumes else [])


@pytest.mark.parametrize("program", ["/opt/env/bin/mmp-anything", "prune.py"])
def test_the_command_is_as_it_was_typed(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "-m", "strategy=glob(*)", "paths.results=my results"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    start = f"{sys.orig_argv[0]} prune.py" if program.endswith(".py") else program
    assert as_typed() == f"{start} -m 'strategy=glob(*)' 'paths.results=my results'"


def test_the_command_of_a_module_is_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/anywhere/mmp/export/__main__.py", "runs"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="mmp.export.__main__"))
    assert as_typed() == f"{sys.orig_argv[0]} -m mmp.export runs"


def test_ctrl_c_in_a_report_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write_report", fail)
    assert report.main([str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_while_slurm_works_says_that_the_jobs_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Jobs:
        jobs, missing = [["a=1"], ["a=2"]], staticmethod(lambda: [0, 1])

    def wait(*_: object) -> None:
        raise Interrupted(code=143)

    launcher = mmp_launchers.Slurm.__new__(mmp_launchers.Slurm)
    launcher.hydra_context, launcher.config = object(), {}
    monkeypatch.setattr("mmp.sweeps.jobs.Sweep", lambda *_: Jobs())
    monkeypatch.setattr(launcher, "_submit", lambda *_: [SimpleNamespace(job_id=f"77_{i}") for i in range(2)])
    monkeypatch.setattr(launcher, "_wait", wait)
    with pytest.raises(Interrupted) as raised:
        launcher.launch([["a=1"], ["a=2"]], 0)
    assert "the jobs on the cluster go on (`scancel 77` ends them)" in str(raised.value)
    assert code_of(raised.value) == 143


def test_ctrl_c_does_not_reach_a_process_that_was_started_while_it_was_blocked() -> None:
    with sigint_blocked():
        blocked = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    blocked.send_signal(signal.SIGINT)
    blocked.communicate(b"\n", timeout=60)
    assert blocked.returncode == 0
    reached = []

    def press() -> None:
        with sigint_blocked():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # another thread would receive it at once
            reached.append("the end of the block")

    with pytest.raises(KeyboardInterrupt):
        press()
    assert reached
