"""Everything that a GPU decides, measured once on a machine with one GPU.

``python -m benchmarks.gpu --minutes 8 --results benchmarks/results/gpu.jsonl`` runs the parts of
``benchmarks/gpu_parts.py`` in order of worth, each in a process of its own under a time limit, and appends a JSON row
to the file for every figure as soon as it is known. A part that crashes or is stopped leaves a row, too, and the next
part runs. At the end the table of this call's rows is printed, and the last lines of the logs of parts that failed.

``--parts scores,jobs`` runs some parts only. ``--data FOLDER`` holds ``gtsrb/GTSRB`` and ``cifar-10-batches-py``, as
torchvision unpacks them; without them the paper's experiments are skipped. ``--work FOLDER`` keeps runs and logs.
``--dry-run`` makes every part small: the same code then runs on a CPU in minutes.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS
from benchmarks.gpu_parts import PARTS, ROOT, TOGETHER, Figure, Setting
from benchmarks.timing import shown
from mmp.export.measure import processor
from mmp.markdown import table_of

RESERVE = 10  # seconds that are left for the table
SHORTEST = 15  # seconds with which it is worth starting a part


class Rows:
    """Appends figures to a file, with all that tells where they come from.

    Args:
        path: The file of JSON rows.
        commit: The commit that is measured; asked of git if None.
    """

    def __init__(self, path: Path, commit: str | None) -> None:
        self.path, self._given = path, commit
        self.path.parent.mkdir(parents=True, exist_ok=True)

    @cached_property
    def commit(self) -> str:
        """The commit."""
        git = [shutil.which("git") or "git", "rev-parse", "--short", "HEAD"]
        done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
        return self._given or done.stdout.strip() or "unknown"

    @cached_property
    def _origin(self) -> dict[str, Any]:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
        return {"device": device, "torch": torch.__version__, "commit": self.commit}

    def append(self, part: str, figure: Figure, dry: bool) -> None:
        """Write one row at once."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"part": part, **asdict(figure), **self._origin, "date": date, "dry_run": dry}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def read(self, skipped: int = 0) -> list[dict[str, Any]]:
        """Return the rows behind the first few."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        return [json.loads(line) for line in lines[skipped:]]


def run_part(name: str, setting: Setting, rows: Rows) -> None:
    """Measure one part in this process."""
    part = PARTS[name]
    for figure in part.measure(setting, **part.options):
        rows.append(name, figure, setting.dry)


class Running:
    """A part in a process of its own, with all processes that it starts in one group.

    Args:
        name: The part.
        command: What runs it.
        log: Where its output goes.
        seconds: After how many seconds it is stopped.
        threads: Threads of each of its processes; None for the default.
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
        """Wait until the part ends, or stop it; return its outcome, in seconds."""
        try:
            code = self._process.wait(max(0.1, self._start + self._seconds - time.monotonic()))
            outcome = "completed" if code == 0 else f"failed with exit code {code}: {self.last_lines(1)}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped at its limit of {self._seconds:.0f} s"
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # whatever the part has started
        self._process.wait()
        took = time.monotonic() - self._start
        return Figure("outcome", round(took, 1), "s", target="completed", holds=outcome == "completed", note=outcome)

    def last_lines(self, count: int) -> str:
        """Return the end of the log."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-count:])


def run_all(chosen: Sequence[str], setting: Setting, rows: Rows, minutes: float) -> Iterator[Running]:
    """Run parts, one group at a time, until the time is up; yield those that did not complete."""
    end = time.monotonic() + 60 * minutes - RESERVE
    for group in groups_of(chosen):
        started = []
        for name in group:
            part, left = PARTS[name], end - time.monotonic()
            missing = bool(part.needs) and not (setting.data / part.needs).is_dir()
            if missing or left < SHORTEST:
                why = f"no {setting.data / part.needs}" if missing else "no time left"
                rows.append(name, Figure("outcome", 0.0, "s", "completed", note=f"skipped: {why}"), setting.dry)
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
    """Return parts in order; those that may run at the same time are together."""
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


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table, and below it the machine."""
    cells = []
    for row in rows:
        spread = "" if row["low"] is None else f"{shown(row['low'])} to {shown(row['high'])}"
        verdict = {None: "", True: "pass", False: "**miss**"}[row["holds"]]
        value = f"{shown(row['value'])} {row['unit']}"
        cells.append([row["part"], row["name"], row["target"], value, spread, verdict, row["note"]])
    last = rows[-1]
    origin = f"{last['device']}, torch {last['torch']}, commit {last['commit']}, {last['date']}"
    return table_of(["part", "what", "target", "value", "spread", "", ""], cells) + f"\n\n{origin}"


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--results", type=Path, default=RESULTS / "gpu.jsonl", help="the file of all rows")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, separated by commas")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of data sets")
    parser.add_argument("--work", type=Path, help="a folder for runs and logs; a temporary one by default")
    parser.add_argument("--commit", help="what the rows name as the commit; asked of git by default")
    parser.add_argument("--dry-run", action="store_true", help="make every part small")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)  # one part, in this process
    given = parser.parse_args()
    chosen = given.parts.split(",")
    if unknown := set(chosen) - PARTS.keys():
        parser.error(f"--parts: unknown {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    work = (given.work or Path(tempfile.mkdtemp(prefix="mmp-gpu-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    setting, rows = Setting(given.data.resolve(), work, given.dry_run), Rows(given.results.resolve(), given.commit)
    if given.only:
        run_part(given.only, setting, rows)
        return
    before = len(rows.read())
    failed = list(run_all(chosen, setting, rows, given.minutes))
    for running in failed:
        sys.stdout.write(f"--- {running.name}: the end of its log ---\n{running.last_lines(15)}\n\n")
    sys.stdout.write(table(rows.read(before)) + "\n")


if __name__ == "__main__":
    main()
