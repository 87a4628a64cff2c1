"""A training step on the CPU with and without freed memory that the heap keeps (``mmp.runs.memory``).

``python -m benchmarks.heap`` times steps of ResNet-18 and of the demo's CNN in processes of their own, in turns.
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
    """Return seconds and page faults of a step, in this process."""
    steps = step_of(name, *CASES[name], None)
    for _ in range(WARM):
        steps()
    faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    for _ in range(WARM):
        steps()
    seconds = time.perf_counter() - start
    return seconds / WARM / STEPS, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / WARM / STEPS


def elsewhere(name: str, kept: bool) -> tuple[float, float]:
    """Return the same of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.heap", name, *(["kept"] if kept else [])]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    seconds, faults = map(float, done.stdout.split())
    return seconds, faults


def compare(name: str) -> Claim:
    """Return what a step costs with memory kept, over one without."""
    turns = [(elsewhere(name, kept=True), elsewhere(name, kept=False)) for _ in range(REPEATS)]
    kept, returned = zip(*turns, strict=True)
    _, pixels, images = CASES[name]
    return Claim(
        f"{name}, {images} images of {pixels}x{pixels}: a step with freed memory kept over one without",
        ratios([seconds for seconds, _ in kept], [seconds for seconds, _ in returned]),
        note=f"{kept[0][1]:,.0f} page faults a step, not {returned[0][1]:,.0f}",
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
