"""The progress of a sweep, computed from its files and shown in a real terminal."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from misbehaving import overrides
from sweeping import ROOT, arguments, environment, sweep
from terminal import Session, play

from mmp.config.registration import register
from mmp.runs.progress_file import PROGRESS, ProgressFile
from mmp.runs.store import RESULT, STATUS
from mmp.sweeps import progress
from mmp.sweeps.display import Lines, clock, render_region
from mmp.sweeps.jobs import expand
from mmp.sweeps.progress import JobProgress, Progress, State, rounded_time

slow = pytest.mark.slow

# --- computed from files ---


class Sweep:
    """A sweep's folder with hand-written files."""

    def __init__(self, folder: Path, jobs: int | None = 4) -> None:
        self.folder, self.now, self._written = folder, 100.0, 0
        self._jobs = None if jobs is None else [[f"job={number}"] for number in range(jobs)]

    def progress(self) -> Progress:
        return Progress(self.folder, self._jobs, lambda: self.now)

    def write(self, number: int, status: str, run: str = "", **more: Any) -> Path:
        path = self.folder / (run or f"run{number}") / STATUS
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"status": status, "run_name": run or f"run{number}", "overrides": [f"job={number}"], **more}
        self._written += 1
        path.write_text(json.dumps(content) + " " * self._written)
        return path.parent

    def complete(self, number: int, seconds: float, run: str = "") -> None:
        folder = self.write(number, "running", run)
        result = {
            "sparsity": 0.5, "drop": 1.25, "seconds": {"total": seconds}, "accuracy": {"finetuned": {"test": 0.975}},
        }  # fmt: skip
        (folder / RESULT).write_text(json.dumps(result))
        self.write(number, "completed", run)


def test_jobs_are_counted_as_they_start_and_end(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    following = sweep.progress()
    assert following.update() == []
    assert following.state.line == "0 of 4 done, time left unknown"
    sweep.write(0, "running")
    sweep.write(1, "running")
    assert following.update() == []
    assert following.state.line == "0 of 4 done, 2 running, time left unknown"
    sweep.now += 10
    sweep.complete(0, 10.0)
    (ended,) = following.update()
    assert ended.line == "done run0: sparsity 50.0 %, test 97.50 %, drop 1.25 points, 10.0 s"
    # Two workers and two waiting jobs of 10 s each; the running job has already taken as long as the completed one.
    assert following.state.line == "1 of 4 done, 1 running, about 10 s left"
    sweep.write(1, "failed", error={"type": "MmpError", "message": "the loss became nan\nin epoch 3"})
    sweep.write(2, "skipped")
    ended = following.update()
    assert sorted(job.status for job in ended) == ["failed", "skipped"]
    assert "FAILED run1: MmpError: the loss became nan" in [job.line for job in ended]
    assert following.update() == []
    assert following.state.line == "2 of 4 done (1 skipped), 1 failed, about 10 s left"
    assert [job.line for job in following._jobs.values() if job.reason] == [
        "FAILED run1: MmpError: the loss became nan"
    ]
    sweep.complete(3, 10.0)
    following.update()
    assert following.state.line == "3 of 4 done (1 skipped), 1 failed"


def test_a_run_with_whole_channels_shows_the_removed_parameters(tmp_path: Path) -> None:
    result = {"sparsity": 0.5, "sparsity_all": 0.45, "parameters_left": 550}
    job = JobProgress(tmp_path, "run0", "completed", 0.0, result=result)
    assert job.line == "done run0: 45.0 % of the parameters removed"


def test_earlier_runs_and_other_sweeps_are_not_counted(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.complete(0, 3.0)
    sweep.write(1, "failed", error={"type": "Error", "message": ""})
    sweep.write(2, "running")
    following = sweep.progress()
    following.update()
    assert following.state.line == "0 of 4 done, time left unknown"
    sweep.write(7, "running")
    sweep.complete(8, 3.0)
    following.update()
    assert following.state.line == "0 of 4 done, time left unknown"
    sweep.write(0, "skipped")
    sweep.write(1, "running")
    following.update()
    assert following.state.line == "1 of 4 done (1 skipped), 1 running, time left unknown"


def test_a_job_without_name_and_overrides_counts(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    following = sweep.progress()
    sweep.write(0, "failed", overrides=None, run_name=None, error={"type": "MmpError", "message": "no such key"})
    (ended,) = following.update()
    assert ended.line.endswith("MmpError: no such key")
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / STATUS).write_text("{ half")
    following.update()
    assert following.state.line == "0 of 4 done, 1 failed, time left unknown"


def test_without_the_number_of_jobs_there_is_no_estimate(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, None)
    following = sweep.progress()
    sweep.complete(12, 3.0)
    following.update()
    assert following.state.line == "1 done"


def test_two_jobs_with_the_same_run_count_twice(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, 2)
    following = sweep.progress()
    sweep.write(0, "running", "same")
    following.update()
    sweep.complete(0, 3.0, "same")
    sweep.write(1, "skipped", "same")  # before the next update
    following.update()
    assert following.state.line == "2 of 2 done (1 skipped)"


def test_runs_are_found_in_nested_folders(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    following = sweep.progress()
    sweep.write(0, "running", "vit/digits/run")
    following.update()
    assert following.state.line == "0 of 4 done, 1 running, time left unknown"


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, read = Sweep(tmp_path), []

    class Counted(progress.RunFolder):
        @property
        def status(self) -> dict[str, Any] | None:
            read.append(self.path.name)
            return super().status

    monkeypatch.setattr(progress, "RunFolder", Counted)
    for number in range(3):
        sweep.complete(number, 1.0)
    following = sweep.progress()
    assert read == []
    sweep.write(1, "running")
    for _ in range(5):
        following.update()
    sweep.write(1, "completed")
    for _ in range(5):
        following.update()
    assert read == ["run1", "run1"]


def test_what_is_known_of_a_part_is_a_lower_limit(tmp_path: Path) -> None:
    def line(left: float | None, whole: bool) -> str:
        return State(4, 1, 0, 0, (), 0.0, 100.0, left, whole).line

    assert line(240.0, True) == "1 of 4 done, about 4 min left"
    assert line(240.0, False) == "1 of 4 done, more than 4 min left"
    assert line(0.0, False) == line(None, True) == "1 of 4 done, time left unknown"


def test_the_estimate_knows_the_models_of_the_jobs_and_the_epochs_of_a_training(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, 0)
    jobs = {
        number: [f"model={model}", f"strategy={number}"] for number, model in enumerate(("cnn", "cnn", "vit", "vit"))
    }
    following = Progress(tmp_path, list(jobs.values()), lambda: sweep.now)

    def begin(number: int) -> Path:
        folder = sweep.write(number, "running", overrides=jobs[number])
        following.update()
        return folder

    for number in (0, 1):
        sweep.now += 10
        (begin(number) / RESULT).write_text(json.dumps({"seconds": {"total": 10.0}}))
        sweep.write(number, "completed", overrides=jobs[number])
    following.update()
    assert following.state.line == "2 of 4 done, time left unknown"
    file = ProgressFile(begin(2))
    file.always = {"finetune_epochs": 5}
    file.begin("dense")
    following.update()
    sweep.now += 40
    file.add(epoch=5, epochs=10, fraction=0.5)
    file._write()
    following.update()
    assert following.state.line == "2 of 4 done, 1 running, about 2 min left"  # 40, 40 and 40 s
    assert following.state.left == 120.0


def test_durations_are_rounded() -> None:
    assert [rounded_time(s) for s in (0.2, 40.4, 89, 91, 239, 3600, 7800)] == [
        "1 s", "40 s", "89 s", "2 min", "4 min", "60 min", "2 h 10 min",
    ]  # fmt: skip
    assert [clock(s) for s in (0.9, 61, 3723)] == ["0:00", "1:01", "1:02:03"]


def shown(state: State, rows: int) -> list[str]:
    from rich.console import Console

    console = Console(width=100, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(render_region(state, rows))
    return console.export_text().splitlines()


def test_the_region_has_a_line_per_job_and_fits_the_terminal(tmp_path: Path) -> None:
    latest = {"phase": "finetune", "epoch": 2, "epochs": 4, "fraction": 0.5, "accuracy": 0.975}
    jobs = tuple(JobProgress(tmp_path, f"run{number}", "running", 93.0, latest=latest) for number in range(30))
    state = State(40, 1, 0, 0, jobs, 0.0, 100.0, 240.0)
    lines = shown(state, 10)
    assert len(lines) == 8
    assert lines[0].split() == ["run0", "fine-tuning", "2/4", "━━━━━━", "97.5", "%", "0:07"]
    assert lines[-2:] == ["and 24 more", "sweep: 1 of 40 done, 30 running, about 4 min left, 1:40 so far"]
    assert shown(State(40, 0, 0, 0, (), 0.0, 0.0, None), 10) == ["sweep: 0 of 40 done, time left unknown, 0:00 so far"]
    long = JobProgress(tmp_path, "n" * 200, "running", 93.0, latest={"phase": "scores"})
    assert "…  scores" in shown(State(1, 0, 0, 0, (long,), 0.0, 100.0, None), 10)[0]


def test_a_progress_file_is_written_rarely_and_never_fails_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    file, read = ProgressFile(tmp_path), lambda: json.loads((tmp_path / PROGRESS).read_text())
    file.begin("dense")
    file.add(epoch=1)
    assert read() == {"phase": "dense"}
    now = 0.6
    file.add(epochs=2)
    assert read() == {"phase": "dense", "epoch": 1, "epochs": 2}
    file.begin("scores")
    assert read() == {"phase": "scores"}
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []
    for unwritable in (ProgressFile(tmp_path / "no such folder"), ProgressFile(Path("/dev/null"))):
        unwritable.begin("dense")
        unwritable.remove()


@slow
def test_the_jobs_of_a_command_line_are_known_in_advance(conf: Path) -> None:
    register()

    def jobs(*given: str, **params: str) -> Any:
        with initialize_config_dir(str(conf), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            config = loader.load_configuration("prune", list(given), run_mode=RunMode.MULTIRUN)
            config.hydra.sweeper.params = params or None
            return expand(config)

    assert jobs("signal=magnitude,product", "seed=range(0,2)", "force=true")[1] == [
        "signal=magnitude", "seed=1", "force=True",
    ]  # fmt: skip
    assert len(jobs("strategy=glob(*)", "signal=magnitude,gradient,product", "hydra.sweeper.max_batch_size=4")) == 30
    assert jobs("force=true", seed="1,2")[1] == ["seed=2", "force=True"]
    assert jobs("match=${sweep}", "seed=1,2")[0] == [r"match=$\{sweep\}", "seed=1"]  # as in status.json
    assert jobs("finetune.learning_rate=interval(0,1)") is None


def test_plain_lines_are_rare_except_for_the_first_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(tmp_path)
    following = sweep.progress()
    lines = Lines(following, 1000.0)
    for number in range(3):
        lines._show(following.update())
        sweep.write(number, "failed")
    lines._show(following.update())
    assert capsys.readouterr().out == "sweep: 0 of 4 done, 1 failed, time left unknown\n"


# --- shown in a terminal ---

SHORT = ["data.batch_size=256"]


def seen(results: Path, *given: str, **options: Any) -> Session:
    command = [argument for argument in arguments(results, *given) if "progress_bar" not in argument]
    return play(command, ROOT, environment(), **options)


def check(session: Session, last: str) -> None:
    """Check that a terminal shows complete lines, and the region's last state once."""
    assert session.cursor
    assert sum(line.startswith("sweep: ") for line in session.lines) == 1, session.lines
    assert any(re.fullmatch(rf"sweep: {last}, \d+:\d\d so far", line) for line in session.lines), session.lines
    for line in session.lines:
        assert "━" not in line
        assert re.search(r"sweep: |\[HYDRA\]|done cnn|FAILED cnn", line[1:]) is None or line.startswith("[20"), line


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep without a terminal, two of whose jobs fail: its folder of results, and its output."""
    results = tmp_path_factory.mktemp("results")
    done = sweep(results, *SHORT, "strategy=p30,p50", "finetune.learning_rate=1e-3,0", "hydra.callbacks.report.every=0")
    assert done.returncode == 1, done.stderr
    return results, done.stdout


@slow
def test_without_a_terminal_there_are_plain_lines(plain: tuple[Path, str]) -> None:
    results, written = plain
    lines = [line for line in written.splitlines() if line.startswith("sweep: ")]
    matched = [
        re.fullmatch(r"sweep: (\d) of 4 done(?:, (\d) failed)?(?:, 1 running)?(?:, .*left.*)?", x) for x in lines
    ]
    counts = [(int(match[1]), int(match[2] or 0)) for match in matched if match]
    assert len(counts) == len(lines) == len(set(lines)), lines
    for numbers in zip(*counts, strict=True):
        assert list(numbers) == sorted(numbers)
    assert lines[-1] == "sweep: 2 of 4 done, 2 failed"
    assert "\x1b" not in written
    assert not list(results.rglob(PROGRESS))


@slow
def test_a_terminal_shows_the_running_job_and_finally_the_numbers(plain: tuple[Path, str]) -> None:
    results, _ = plain
    session = seen(results, *SHORT, "strategy=p30,p50,p70,p90", "finetune.learning_rate=1e-3")
    assert session.code == 1  # the folder also has the failures of the other sweep
    check(session, r"4 of 4 done \(2 skipped\)")
    assert any(re.search(r"cnn-digits-magnitude-p90\S+ +[a-z]", screen) for screen in session.screens)
    assert any("time left unknown" in screen for screen in session.screens)
    assert any(re.search(r"3 of 4 done \(2 skipped\), 1 running, about \d+ s left", s) for s in session.screens)
    ended = [line for line in session.lines if line.startswith("done ")]
    assert [re.sub(r"-\w{8}:.*", "", line) for line in ended] == [
        "done cnn-digits-magnitude-p70-s0", "done cnn-digits-magnitude-p90-s0",
    ]  # fmt: skip
    assert all(re.search(r"sparsity \d\d\.\d %, test \d\d\.\d\d %, drop -?\d+\.\d\d points", e) for e in ended)
    assert sum("#1 : " in line for line in session.lines) == 1  # log lines of this process are above the region
    assert any("4 completed" in line for line in session.lines)


@slow
def test_parallel_workers_are_shown_without_garbled_lines(plain: tuple[Path, str]) -> None:
    results, _ = plain
    workers = [
        "sweep=workers",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "strategy=p30,p70,p90",
        "finetune.epochs=2",
    ]
    session = seen(results, *SHORT, *workers, *overrides(p30="slow", p70="slow", p90="raise"))
    assert session.code == 1
    check(session, "2 of 3 done, 1 failed")
    both = r"(p[37]0-\S+ +fine-tuning \d/2.*\n.*){2}sweep: 0 of 3 done, 2 running"
    assert any(re.search(both, screen) for screen in session.screens), session.screens
    assert any(re.search(r"fine-tuning 2/2 +━.* +\d\d\.\d % +\d:\d\d", screen) for screen in session.screens)
    assert sum(line.startswith("done cnn") for line in session.lines) == 2
    assert sum(line.startswith("FAILED cnn-digits-magnitude-p90") for line in session.lines) == 1
    assert not any("[INFO]" in line or "Traceback" in line for line in session.lines)  # they are in the log files
    (log,) = results.glob("sweeps/workers/*p90*/prune.log")
    assert "Traceback" in log.read_text()


@slow
def test_ctrl_c_ends_the_sweep_and_restores_the_terminal(plain: tuple[Path, str]) -> None:
    results, _ = plain
    session = seen(
        results,
        *SHORT,
        "strategy=balanced,aggressive",
        "finetune.epochs=20",
        *overrides(balanced="slow"),
        interrupt=lambda screen: "fine-tuning 1/20" in screen,
    )
    assert session.code == 130
    check(session, "0 of 2 done, time left unknown")
    written = [line for line in session.lines if line]
    (at,) = [i for i, line in enumerate(written) if line == "interrupted: 0 of 2 jobs are done, 2 are left"]
    assert written[at - 1].startswith("sweep: 0 of 2 done")  # the two lines are below the region
    assert written[at + 1].startswith("the same command continues: ")
    assert not any("Traceback" in line or "KeyboardInterrupt" in line for line in written)


@slow
def test_the_last_output_of_a_crash_is_shown(plain: tuple[Path, str]) -> None:
    results, _ = plain
    session = seen(results, *SHORT, "sweep=crash", "strategy=p30", *overrides(p30="abort"))
    assert session.code == -signal.SIGABRT
    assert "last words" in session.lines, session.lines


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from mmp.runs.terminal import is_shown
from mmp.sweeps.display import watch
from mmp.sweeps.progress import Progress
folder = Path(sys.argv[1])
display = watch(folder, [["a"]], True, None)
assert is_shown() and not sys.stdout.isatty()
"""


def script(tmp_path: Path, text: str) -> Session:
    path = {"PYTHONPATH": str(ROOT)}
    return play([sys.executable, "-c", SCRIPT + text, str(tmp_path)], ROOT, environment(**path), limit=60)


@slow
def test_all_output_is_printed_above_the_region(tmp_path: Path) -> None:
    session = script(
        tmp_path,
        "os.system('echo from a shell; printf \"\\\\r 10 %%\\\\r 50 %%\\\\r\"')\n"
        "sys.stderr.write('bar 1\\rbar 2\\r     \\r')\n"
        "print('\\x1b[5A\\x1b[2Jup\\x1b[31m and red\\x1b[0m')\n"
        "time.sleep(1.2)\n"
        "os.write(1, b'no end')\n"
        "display.stop(); display.stop()\n"
        "assert not is_shown() and sys.stdout.isatty()\n"
        "print('after')\n",
    )
    assert session.code == 0, session.lines
    written = [line for line in session.lines if line]
    assert written == [
        "from a shell", "up and red", "no end", "sweep: 0 of 1 done, time left unknown, 0:01 so far", "after",
    ]  # fmt: skip


@slow
def test_output_is_shown_after_the_process_was_killed(tmp_path: Path) -> None:
    session = script(
        tmp_path,
        "time.sleep(1.2)\n"
        "os.system('(sleep 1; echo outlived) &')\n"
        "os.write(2, b'killed' + b'!' * 30_000)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    assert session.code == -signal.SIGKILL
    assert any(line.startswith("killed!!") for line in session.lines), session.lines
    assert sum(line.count("!") for line in session.lines) == 30_000
    assert any(line.endswith("outlived") for line in session.lines)


@slow
def test_a_display_that_fails_is_reported_once_and_the_sweep_goes_on(tmp_path: Path) -> None:
    session = script(
        tmp_path,
        "def fail(self): raise RuntimeError('no such thing')\n"
        "Progress.update = fail\n"
        "time.sleep(1.2)\n"
        "os.write(1, bytes(100_000) + b'all of it\\n')\n"  # more than the capacity of a pipe
        "start, spent = time.monotonic(), time.process_time()\n"
        "time.sleep(0.5)\n"
        "display.stop()\n"
        "print('after', time.monotonic() - start < 5, time.process_time() - spent < 0.2)\n",
    )
    assert session.code == 0
    messages = [line for line in session.lines if "display has stopped" in line]
    assert messages == ["the progress display has stopped: RuntimeError: no such thing"]
    assert session.lines.count("all of it") == 1
    assert "after True True" in session.lines
    assert session.cursor
