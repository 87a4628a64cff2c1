"""Time from the start of ``mmp-prune`` to the first step of fine-tuning, with the dense model and the scores cached.

``python -m benchmarks.first_step``, or with ``--against <folder of another checkout>`` to compare the two by turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


CLOCK = """
import json, os, pathlib, time
import pytorch_lightning as pl

class Clock(pl.Callback):
    def __init__(self, path):
        self._path = pathlib.Path(path)

    def on_train_batch_start(self, *_):
        self._path.write_text(json.dumps([time.time(), time.process_time()]))
        os._exit(0)
"""  # a module of its own, since the other checkout may not have this benchmark


def first_step(checkout: Path, folder: Path, *overrides: str) -> tuple[float, float]:
    """Run a job in a checkout up to its first step of fine-tuning.

    Returns:
        Seconds since the start of the process, and seconds of processor time.
    """
    path = folder / "step.json"
    (folder / "first_step_clock.py").write_text(CLOCK)
    clock = f"+callbacks.clock={{_target_: first_step_clock.Clock, path: {path}}}"
    start = time.time()
    _run(checkout, folder, clock, *overrides)
    at, used = json.loads(path.read_text())
    return at - start, used


def _run(checkout: Path, folder: Path, *overrides: str) -> None:
    fixed = ["debug=fast", "trainer.enable_progress_bar=false", "data.workers=0", f"paths.results={folder}"]
    environment = {**os.environ, "PYTHONPATH": f"{checkout}:{folder}", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "prune.py", *fixed, *overrides], cwd=checkout, env=environment, check=True, capture_output=True
    )


def main() -> None:
    """Print the medians of each checkout, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="the folder of another checkout")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    checkouts = [ROOT, *([options.against.resolve()] if options.against else [])]
    medians = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / str(index) for index in range(len(checkouts))]
        for checkout, folder in zip(checkouts, folders, strict=True):
            folder.mkdir()
            _run(checkout, folder)
            first_step(checkout, folder)
        times: list[list[tuple[float, float]]] = [[] for _ in checkouts]
        for _ in range(options.runs):
            for index, checkout in enumerate(checkouts):
                times[index].append(first_step(checkout, folders[index]))
    for checkout, found in zip(checkouts, times, strict=True):
        wall, used = (statistics.median(values) for values in zip(*found, strict=True))
        medians.append((wall, used))
        sys.stdout.write(f"{checkout}: {wall:.2f} s, {used:.2f} s of processor time\n")
    if options.against:
        ratios = [ours / theirs for ours, theirs in zip(*medians, strict=True)]
        sys.stdout.write(f"ratio: {ratios[0]:.3f}, of processor time {ratios[1]:.3f}\n")


if __name__ == "__main__":
    main()
