"""What other busy processes cost: a training step, a job of the demo and a re-solved grid, alone and beside them.

``python -m benchmarks.crowded`` measures each on an idle machine, beside two and beside eight busy processes, with the
short spin of OpenMP's threads that every command sets (:mod:`mmp.openmp`), and with the spin of the runtime's default.
It prints how many times as long each takes, and the share of the cores that the scheduler leaves to it: a process with
half of the time of the cores should take about twice as long.

``--parts step,job`` and ``--spins short`` measure some parts and settings only, and ``--repeats`` sets the number of
repetitions of a step. With the default spin, the parts take long beside eight busy processes: a step, 47 times as long.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import Claim, table
from mmp.machine import usable_cores

ROOT = Path(__file__).parents[1]
BESIDE = (2, 8)  # busy processes
MOST = 1.3  # times the slowdown that the share of the cores explains
DEFAULT = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}  # of the runtimes
BUSY = "while True: pass"
STEP = """
import time, torch
from benchmarks.pruning_runs import configured
from mmp.models.networks import build_model
config = configured(["model=vit", "data=digits"])
model, size = build_model(config.model), config.data.image_size
optimizer = torch.optim.AdamW(model.parameters())
images, labels = torch.randn(64, config.model.in_chans, size, size), torch.randint(10, (64,))
for step in range(REPEATS + 5):
    if step == 5:
        start = time.perf_counter()
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
print((time.perf_counter() - start) / REPEATS)
"""
SMALL = ("data=digits", "data.workers=0", "logger=none", "trainer.enable_progress_bar=false", "dense.epochs=2")
JOB = (*SMALL, "model=vit", "finetune.epochs=2")
GRID = ("-m", *SMALL, "model=cnn", "strategy=glob(*)", "reconstruct=least_squares", "finetune=none")
PARTS = ("step", "job", "grid")
SPINS = ("short", "default")


@dataclass(frozen=True)
class Measurement:
    """Seconds of one part.

    Attributes:
        part: Name of the part.
        spin: One of `SPINS`.
        beside: Number of busy processes beside it.
        seconds: Its wall time.
    """

    part: str
    spin: str
    beside: int
    seconds: float


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep processes busy for a ``with`` block."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]  # noqa: S603
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def seconds_of(part: str, spin: str, repeats: int) -> float:
    """Return the seconds of a part, measured in a new process.

    Args:
        part: One of `PARTS`.
        spin: One of `SPINS`.
        repeats: Number of repetitions of a step.
    """
    environment = environment_of(spin)
    if part == "step":
        command = [sys.executable, "-c", STEP.replace("REPEATS", str(repeats))]
        return float(output_of(command, environment))
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"paths.results={folder}", f"paths.cache={folder}/cache"]
        command = [sys.executable, "prune.py", *(JOB if part == "job" else GRID), *paths]
        start = time.perf_counter()
        output_of(command, environment)
        return time.perf_counter() - start


def output_of(command: Sequence[str], environment: dict[str, str]) -> str:
    """Return what a command prints.

    Raises:
        RuntimeError: if it fails; with its errors.
    """
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout


def environment_of(spin: str) -> dict[str, str]:
    """Return the environment of a measured process: with the settings of every command, or with the defaults."""
    return os.environ | DEFAULT if spin == "default" else dict(os.environ)


def measure(parts: Sequence[str], spins: Sequence[str], repeats: int) -> list[Measurement]:
    """Measure all parts; the kinds of spin follow one another, so that the state of the machine affects both."""
    found = []
    for part in parts:
        for count in (0, *BESIDE):
            for spin in spins:
                with busy(count):
                    found.append(Measurement(part, spin, count, seconds_of(part, spin, repeats)))
                sys.stderr.write(f"{found[-1]}\n")
    return found


def claims(found: Sequence[Measurement], cores: int) -> Iterator[Claim]:
    """Yield how many times as long each part takes beside busy processes.

    Args:
        found: The measurements.
        cores: Cores that a process may use, and the number of its threads.
    """
    alone = {(one.part, one.spin): one.seconds for one in found if not one.beside}
    for one in found:
        if not one.beside:
            yield Claim(f"{one.part}, {one.spin} spin, idle: seconds", [one.seconds])
            continue
        ratio = one.seconds / alone[one.part, one.spin]
        explained = (cores + one.beside) / cores  # with as many threads as cores, each has an equal share of the time
        what = f"{one.part}, {one.spin} spin, beside {one.beside} busy processes: times as long as idle"
        most = MOST * explained if one.spin == "short" else None
        yield Claim(what, [ratio], most=most, note=f"{one.seconds:.3g} s; the cores' share explains {explained:.3g}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, known in (("parts", PARTS), ("spins", SPINS)):
        parser.add_argument(f"--{name}", default=",".join(known), help=f"the {name} to measure, separated by commas")
    parser.add_argument("--repeats", type=int, default=100, help="repetitions of a step")
    given = parser.parse_args()
    parts, spins = given.parts.split(","), given.spins.split(",")
    for name, chosen, known in (("parts", parts, PARTS), ("spins", spins, SPINS)):
        if unknown := set(chosen) - set(known):
            parser.error(f"--{name}: unknown {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    sys.stdout.write(table(claims(measure(parts, spins, given.repeats), usable_cores())) + "\n")


if __name__ == "__main__":
    main()
