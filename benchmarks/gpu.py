"""All measurements that need a GPU, on a machine with one GPU.

``python -m benchmarks.gpu --minutes 8`` runs the parts of ``benchmarks/gpu_parts.py``, the most important first. Each
part runs in its own process under a time limit. Every figure is appended at once, as a JSON row, to
``benchmarks/results/gpu.jsonl``. A part that crashes, is stopped or is skipped leaves a row too, and the next part
runs. At the end the command prints this call's rows as a table, and the last log lines of the parts that failed.

``python -m benchmarks.gpu --show`` measures nothing; it prints the latest rows of the file, one table for each part, as
in ``benchmarks/README.md``.

``--parts scores,jobs`` runs some parts only. ``--data FOLDER`` is the folder with ``gtsrb/GTSRB`` and
``cifar-10-batches-py``, as torchvision unpacks them; without them the paper's experiments are skipped. The parts
``oneshot`` and ``study`` read CIFAR-10 and checkpoints there, such as ``networks/resnet20.safetensors``; they come last
and take all the time that is left, so name them alone. ``--work FOLDER`` keeps runs, logs and the rows of these two.
``--dry-run`` makes every part small, so that all run on a CPU in minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS
from benchmarks.gpu_figures import ROOT, Figure, Setting
from benchmarks.gpu_parts import PARTS, TOGETHER
from benchmarks.timing import shown
from mmp.export.measure import processor
from mmp.markdown import table_of

RESERVE = 10  # seconds kept for the table at the end
SHORTEST = 15  # a part does not start with fewer seconds left


class Rows:
    """A file of figures, each with its device, torch version, commit and date.

    Args:
        path: The file; it has one JSON row per line.
        commit: The measured commit; read from git if None.
    """

    def __init__(self, path: Path, commit: str | None) -> None:
        self.path, self._given = path, commit
        self.path.parent.mkdir(parents=True, exist_ok=True)

    @cached_property
    def commit(self) -> str:
        """The short hash of the measured commit, or ``unknown``."""
        git = [shutil.which("git") or "git", "rev-parse", "--short", "HEAD"]
        done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
        return self._given or done.stdout.strip() or "unknown"

    @cached_property
    def _origin(self) -> dict[str, Any]:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
        return {"device": device, "torch": torch.__version__, "commit": self.commit}

    def append(self, part: str, figure: Figure, dry: bool) -> None:
        """Append one row to the file."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"part": part, **asdict(figure), **self._origin, "date": date, "dry_run": dry}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def read(self, skipped: int = 0) -> list[dict[str, Any]]:
        """Return all rows after the first ``skipped``."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        return [json.loads(line) for line in lines[skipped:]]


def run_part(name: str, setting: Setting, rows: Rows) -> None:
    """Measure one part in this process."""
    part = PARTS[name]
    for figure in part.measure(setting, **part.options):
        rows.append(name, figure, setting.dry)


class Running:
    """A part that runs in its own process; the processes that it starts are in the same process group.

    Args:
        name: The part's name.
        command: The command that runs the part.
        log: The file for its output.
        seconds: Time limit.
        threads: Number of threads of each process; None for the default.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, seconds: float, threads: int | None) -> None:
        self.name, self._log, self._start = name, log, time.monotonic()
        self._seconds = seconds
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        with log.open("w") as file:
            self._process = subprocess.Popen(  # noqa: S603
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def finish(self) -> Figure:
        """Wait until the part ends, or stop it at its limit; return its outcome and its seconds."""
        try:
            code = self._process.wait(max(0.1, self._start + self._seconds - time.monotonic()))
            outcome = "completed" if code == 0 else f"failed with exit code {code}: {self.last_lines(1)}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped at its limit of {self._seconds:.0f} s"
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # also ends the processes that the part started
        self._process.wait()
        took = time.monotonic() - self._start
        return outcome_of(outcome, took)

    def last_lines(self, count: int) -> str:
        """Return the last lines of the log that are not empty."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-count:])


def outcome_of(note: str, seconds: float = 0.0) -> Figure:
    """Return the figure that says how a part ended; its target is the note ``completed``."""
    return Figure("outcome", round(seconds, 1), "s", target="completed", holds=note == "completed", note=note)


def run_all(chosen: Sequence[str], setting: Setting, rows: Rows, minutes: float) -> Iterator[Running]:
    """Run parts, one group after another, until the time is up; yield the started parts that did not complete."""
    end = time.monotonic() + 60 * minutes - RESERVE
    for group in groups_of(chosen):
        started = []
        for name in group:
            part, left = PARTS[name], end - time.monotonic()
            missing = bool(part.needs) and not (setting.data / part.needs).is_dir()
            if missing or left < SHORTEST:
                why = f"no {part.needs} in the data folder" if missing else "no time left"
                rows.append(name, outcome_of(f"skipped: {why}"), setting.dry)
                continue
            command, log = command_of(name, setting, rows), setting.work / f"{name}.log"
            started.append(Running(name, command, log, min(part.seconds, left), threads=None if len(group) == 1 else 2))
        for running in started:
            outcome, part = running.finish(), PARTS[running.name]
            for figure in part.gather(setting, **part.options) if part.gather else ():
                rows.append(running.name, figure, setting.dry)
            rows.append(running.name, outcome, setting.dry)
            sys.stderr.write(f"{running.name}: {outcome.note}, {outcome.value:.0f} s\n")
            if not outcome.holds:
                yield running


def groups_of(chosen: Sequence[str]) -> list[list[str]]:
    """Return the parts in the order of `PARTS`, in groups of parts that may run at the same time."""
    groups: list[list[str]] = []
    for name in PARTS:
        if name in chosen:
            beside = groups and any({name, groups[-1][0]} <= set(names) for names in TOGETHER)
            groups = [*groups[:-1], [*groups[-1], name]] if beside else [*groups, [name]]
    return groups


def command_of(name: str, setting: Setting, rows: Rows) -> list[str]:
    """Return the command that runs one part."""
    paths = ["--data", str(setting.data), "--work", str(setting.work), "--results", str(rows.path)]
    options = [*paths, "--commit", rows.commit, *(["--dry-run"] if setting.dry else [])]
    return [sys.executable, "-m", "benchmarks.gpu", "--only", name, *options]


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    cells = []
    for row in rows:
        spread = "" if row["low"] is None else f"{shown(row['low'])} to {shown(row['high'])}"
        verdict = {None: "", True: "pass", False: "**miss**"}[row["holds"]]
        cells.append([row["name"], row["target"], value_of(row), spread, verdict, row["note"]])
    return table_of(["what", "target", "value", "spread", "", ""], cells)


def value_of(row: Mapping[str, Any]) -> str:
    """Return a value with its unit; a share has six digits, because 0.999995 is not 1."""
    if row["unit"] == "share":
        return f"{row['value']:.6g}"
    return shown(row["value"]) + ("" if row["unit"] == "ratio" else f" {row['unit']}")


def tables(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a heading and a table for each part, with the latest row of each name, and at the end their origins."""
    latest = {(row["part"], row["name"]): row for row in rows}.values()
    by_part = {part: [row for row in latest if row["part"] == part] for part in PARTS}
    texts = [f"### {part}\n{table(of_part)}" for part, of_part in by_part.items() if of_part]
    origins = {f"{r['device']}, torch {r['torch']}, commit {r['commit']}, {r['date'][:10]}": None for r in latest}
    return "\n\n".join([*texts, *origins])


def main() -> None:
    """Run the parts that the command line names, or show what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the tables of the measured rows and run nothing")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of all parts together")
    parser.add_argument("--results", type=Path, default=RESULTS / "gpu.jsonl", help="the file of rows")
    parser.add_argument("--parts", default=",".join(PARTS), help="the parts to run, separated by commas")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of data sets")
    parser.add_argument("--work", type=Path, help="a folder for runs and logs; a temporary one by default")
    parser.add_argument("--commit", help="the commit that the rows name; read from git by default")
    parser.add_argument("--dry-run", action="store_true", help="make every part small")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)  # one part, in this process
    given = parser.parse_args()
    rows = Rows(given.results.resolve(), given.commit)
    if given.show:
        sys.stdout.write(tables(row for row in rows.read() if not row["dry_run"]) + "\n")
        return
    chosen = given.parts.split(",")
    if unknown := set(chosen) - PARTS.keys():
        parser.error(f"--parts: unknown {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    work = (given.work or Path(tempfile.mkdtemp(prefix="mmp-gpu-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    setting = Setting(given.data.resolve(), work, given.dry_run)
    if given.only:
        run_part(given.only, setting, rows)
        return
    before = len(rows.read())
    failed = list(run_all(chosen, setting, rows, given.minutes))
    for running in failed:
        sys.stdout.write(f"--- {running.name}: the end of its log ---\n{running.last_lines(15)}\n\n")
    sys.stdout.write(tables(rows.read(before)) + "\n")


if __name__ == "__main__":
    main()
