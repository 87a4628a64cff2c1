"""A Hydra callback of tests that records memory. Processes of a sweep import it by name."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from mmp.runs.memory import return_freed_memory


class MemoryRecord(Callback):
    """Records the memory of the process after each job."""

    def on_job_end(self, config: Any, **_: Any) -> None:
        gc.collect()
        return_freed_memory()  # otherwise memory that the allocator keeps varies by 12 MiB
        held = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert held
        with Path(os.environ["MMP_TEST_MEMORY"]).open("a") as file:
            file.write(f"{held.group(1)}\n")
