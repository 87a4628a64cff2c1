"""Sixty jobs in one process: memory does not grow with their number."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from hydra.experimental.callback import Callback
from sweeping import sweep

from benchmarks.sweeps import outcomes
from mmp.runs.memory import return_freed_memory


class Remember(Callback):
    """Writes down the memory that the process holds after each of its jobs."""

    def on_job_end(self, config: Any, **_: Any) -> None:
        gc.collect()
        return_freed_memory()  # or readings go up and down by 12 MiB, with what the allocator keeps in hand
        held = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert held
        with Path(os.environ["MMP_TEST_MEMORY"]).open("a") as file:
            file.write(f"{held.group(1)}\n")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="memory can be told with glibc only")
def test_memory_does_not_grow_over_sixty_jobs(tmp_path: Path) -> None:
    jobs = ["signal=magnitude,gradient,product", "strategy=glob(*)", "finetune.learning_rate=1e-3,2e-3"]
    short = ["trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
    listens = ["+hydra.callbacks.remember._target_=test_growth.Remember"]
    done = sweep(tmp_path, *jobs, *short, *listens, fresh=True, MMP_TEST_MEMORY=str(tmp_path / "memory"))
    assert done.returncode == 0, done.stderr
    assert len(outcomes(tmp_path)) == 60
    held = [int(line) / 1024 for line in (tmp_path / "memory").read_text().split()]
    assert len(held) == 60
    # Flat, it is within 0.2 MiB from the second job on. One mask of each job would be 25 MiB in these 45 jobs.
    grown = statistics.median(held[45:]) - statistics.median(held[:15])
    assert grown < 3, f"{grown:.1f} MiB in 45 jobs: {held}"
