"""The time of a training step on the CPU if the process keeps freed memory (``mmp.runs.memory``), and if it does not.

``python -m benchmarks.heap`` times steps of ResNet-18 and of the demo's CNN in new processes, in turns.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.enforcement import STEPS, step_of
from benchmarks.timing import Claim, ratios, table
from mmp.runs.memory import keep_freed_memory

CASES = {"resnet18": (3, 32, 128), "cnn": (1, 28, 128)}  # channels, pixels, images
REPEATS, WARM = 5, 2


def measure(name: str) -> tuple[float, float]:
    """Return seconds and page faults of a step in this process."""
    steps = step_of(name, *CASES[name], None)
    for _ in range(WARM):
        steps()
    faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    for _ in range(WARM):
        steps()
    seconds = time.perf_counter() - start
    return seconds / WARM / STEPS, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / WARM / STEPS


def elsewhere(name: str, kept: bool) -> tuple[float, float]:
    """Return seconds and page faults of a step in a new process, which may keep freed memory."""
    command = [sys.executable, "-m", "benchmarks.heap", name, *(["kept"] if kept else [])]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    seconds, faults = map(float, done.stdout.split())
    return seconds, faults


def compare(name: str) -> Claim:
    """Return the time of a step with freed memory kept over the time of a step without."""
    turns = [(elsewhere(name, kept=True), elsewhere(name, kept=False)) for _ in range(REPEATS)]
    kept, returned = zip(*turns, strict=True)
    _, pixels, images = CASES[name]
    return Claim(
        f"{name}, {images} images of {pixels}x{pixels}: a step with freed memory kept over one without",
        ratios([seconds for seconds, _ in kept], [seconds for seconds, _ in returned]),
        note=f"{kept[0][1]:,.0f} page faults per step instead of {returned[0][1]:,.0f}",
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        if sys.argv[1] not in CASES:
            sys.exit(__doc__)
        if "kept" in sys.argv[2:]:
            keep_freed_memory()
        sys.stdout.write("{} {}\n".format(*measure(sys.argv[1])))
    else:
        sys.stdout.write(table([compare(name) for name in CASES]) + "\n")
