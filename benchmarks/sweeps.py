"""The overhead of a sweep, the gain from a second worker, and the results of a sweep that is killed.

``python -m benchmarks.sweeps cost`` runs the thirty configurations of a small CNN on digits, and the demo, which adds
those of a small ViT. It runs both in one process and in two workers and prints the table of ``benchmarks/README.md``.
``python -m benchmarks.sweeps kills 40`` kills a sweep at random moments and starts it again, 40 times or until it is
complete, and compares its results with those of an undisturbed sweep.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from benchmarks.timing import Claim, table

ROOT = Path(__file__).parents[1]
GRID = ("signal=magnitude,gradient,product", "strategy=glob(*)")
WORKERS = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SHORT = ("finetune.epochs=1", "dense.epochs=1", "logger=none")
LIMIT = 1800.0  # seconds of a whole sweep
IMPORTS = "import torch, timm, pytorch_lightning, hydra"
TRAINING = """
from benchmarks.enforcement import step_of
import time
steps = step_of("cnn", 1, 28, 64, None)
steps()
start = time.perf_counter()
for _ in range(40):
    steps()
print(time.perf_counter() - start)
"""


class FirstStep(pl.Callback):
    """Writes the time at which the first batch of a training starts to a file.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def on_train_batch_start(self, *_: Any) -> None:
        """Write the time of the first batch."""
        if not self._path.exists():
            self._path.write_text(str(time.time()), encoding="ascii")


def environment() -> dict[str, str]:
    """Return this process's environment, with one thread for every process."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*arguments: str) -> float:
    """Run Python on arguments and return its seconds.

    Raises:
        RuntimeError: if it fails.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return time.perf_counter() - start


def outcome_of(path: Path) -> tuple[Any, ...]:
    """Return the parts of a run's result and weights that a kill must not change."""
    content = json.loads(path.read_text(encoding="utf-8"))
    with (path.parent / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return content["accuracy"], content["masks_hash"], content["epochs"], header["__metadata__"]["sha256"]


def outcomes(results: Path) -> dict[str, tuple[Any, ...]]:
    """Return the outcome of every completed run of a sweep, by folder."""
    return {path.parent.name: outcome_of(path) for path in results.glob("sweeps/sweep/*/result.json")}


def training_of(results: Path) -> float:
    """Return the seconds that the jobs of a sweep spent in training, the dense models' included."""
    seconds = 0.0
    for path in results.glob("sweeps/*/*/result.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        seconds += content["seconds"]["finetune"] + (0 if content["dense_cached"] else content["seconds"]["dense"])
    return seconds


def in_one_and_two(name: str, folder: Path, *arguments: str) -> list[Claim]:
    """Return the claims on a sweep in one process and in two workers, without and with a filled cache."""

    def sweep(kind: str, *more: str, cache: str = "") -> tuple[float, float]:
        paths = [f"paths.results={folder / kind}", *([f"paths.cache={folder / cache / 'cache'}"] if cache else [])]
        seconds = run("prune.py", "-m", *paths, *arguments, *more)
        return seconds, training_of(folder / kind)

    alone, trained = sweep("one")
    both, _ = sweep("two", *WORKERS)
    alone_cached, trained_cached = sweep("one_cached", cache="one")
    both_cached, _ = sweep("two_cached", *WORKERS, cache="one")
    over = f"{name}: wall time over training time"
    times = f"{name}: two workers, times as fast as one process"
    given = ", dense models and scores given"
    return [
        Claim(over, [alone / trained], most=1.1, note=f"{alone:.0f} s over {trained:.0f} s"),
        Claim(over + given, [alone_cached / trained_cached], most=1.1,
              note=f"{alone_cached:.0f} s over {trained_cached:.0f} s"),
        Claim(times, [alone / both], least=1.75, note=f"{both:.0f} s"),
        Claim(times + given, [alone_cached / both_cached], least=1.75, note=f"{both_cached:.0f} s"),
    ]  # fmt: skip


def cost() -> None:
    """Print the table of a sweep's overhead."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        claims = in_one_and_two("a CNN, 30 jobs", folder / "cnn", *GRID)
        claims += in_one_and_two("the demo, a CNN and a ViT, 60 jobs", folder / "demo", "experiment=demo")
        claims.append(Claim("two processes that do nothing but train: times as fast as one", [beside()]))
        results = folder / "cnn" / "one"
        again = run("prune.py", "-m", f"paths.results={results}", *GRID)
        claims.append(Claim("all of the CNN's jobs skipped: seconds", [again]))
        imports = min(run("-c", IMPORTS) for _ in range(3))
        firsts = []
        for attempt in range(3):
            stamp = folder / f"stamp{attempt}"
            listens = ["+callbacks.first._target_=benchmarks.sweeps.FirstStep", f"+callbacks.first.path={stamp}"]
            start = time.time()
            run("prune.py", f"paths.results={folder / str(attempt)}", f"paths.cache={results / 'cache'}", *listens)
            firsts.append(float(stamp.read_text(encoding="ascii")) - start)
    claims.append(
        Claim("start of a cached job to its first step, over importing torch, timm, Lightning and Hydra alone",
              [first / imports for first in firsts], most=1.3, note=f"{min(firsts):.1f} s over {imports:.1f} s")
    )  # fmt: skip
    sys.stdout.write(table(claims) + "\n")


def beside() -> float:
    """Return how many times as fast two processes that only train are as one process."""
    command = [sys.executable, "-c", TRAINING]

    def seconds(processes: int) -> float:
        running = [
            subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE) for _ in range(processes)
        ]
        return max(float(one.communicate()[0]) for one in running)

    return 2 * seconds(1) / seconds(2)


def killed(command: list[str], results: Path, after: float | None) -> int | None:
    """Start a sweep and kill it with all its workers, unless it ends before.

    Args:
        command: The command of the sweep.
        results: The sweep's folder of results.
        after: Seconds between the first status file that a job writes and the kill; None lets the sweep end, within
            half an hour.

    Returns:
        The sweep's exit code; None if it was killed.
    """

    def signs() -> set[tuple[str, int]]:
        return {(str(path), path.stat().st_mtime_ns) for path in results.glob("sweeps/sweep/*/status.json")}

    before = signs()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL
    ) as running:
        if after is not None:
            limit = time.monotonic() + 300
            while running.poll() is None and signs() == before and time.monotonic() < limit:
                time.sleep(0.05)
        try:
            return running.wait(LIMIT if after is None else after)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            return None


def kills(most: int, seed: int = 0) -> None:
    """Kill a sweep at random moments until it is complete, and compare its results with an undisturbed sweep.

    Args:
        most: Largest number of kills.
        seed: Seed of the random moments.

    Raises:
        RuntimeError: if a result is missing or different.
    """
    draw = random.Random(seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run("prune.py", "-m", f"paths.results={folder / 'undisturbed'}", *GRID, *SHORT)
        expected = outcomes(folder / "undisturbed")
        command = [sys.executable, "prune.py", "-m", f"paths.results={folder / 'killed'}", *GRID, *SHORT, *WORKERS]
        survived, code = 0, None
        while code is None:
            code = killed(command, folder / "killed", draw.uniform(0, 2) if survived < most else None)
            survived += code is None
            found = outcomes(folder / "killed")
            if code or found != {name: expected.get(name) for name in found}:
                raise RuntimeError(f"after {survived} kills: exit code {code}, or wrong results")
        if found != expected:
            raise RuntimeError(f"after {survived} kills results are missing")
    sys.stdout.write(
        f"{survived} kills survived; {len(expected)} results with the same bits as in an undisturbed sweep\n"
    )


if __name__ == "__main__":
    commands = {"cost": cost, "kills": lambda: kills(int(sys.argv[2]))}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        raise SystemExit(__doc__)
    commands[sys.argv[1]]()
