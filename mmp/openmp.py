"""The threads of OpenMP: how long a waiting one keeps its core before it sleeps, and their number.

By default a thread spins for milliseconds. Beside other busy processes, it then holds a core that the thread it waits
for needs. A short spin makes steps several times as fast there, and costs little on an idle machine
(``benchmarks/README.md``).
"""

from __future__ import annotations

import os

THREADS = "OMP_NUM_THREADS"  # environment variable
# PyTorch brings GNU's runtime or, from some channels, Intel's or LLVM's, which share their variables.
_SPIN = {
    "GOMP_SPINCOUNT": "1000",  # iterations; GNU's default is 300,000, or more with OMP_WAIT_POLICY=ACTIVE
    "KMP_BLOCKTIME": "1",  # milliseconds; Intel's and LLVM's default is 200
}
_SET_BY_HAND = (*_SPIN, "OMP_WAIT_POLICY", "KMP_LIBRARY")


def bound_spin() -> None:
    """Let OpenMP's threads spin only briefly, unless the environment has a setting of this kind.

    Every command and every worker process calls this first: a runtime reads the variables when it is loaded, with
    PyTorch or scikit-learn. Processes that are started later inherit them.
    """
    if not any(name in os.environ for name in _SET_BY_HAND):
        os.environ.update(_SPIN)


def threads_by_user() -> int | None:
    """Return the number of threads in ``OMP_NUM_THREADS``; None if the variable is not set, or has no number."""
    number = os.environ.get(THREADS, "").partition(",")[0].strip()  # a list has a number for each level of nesting
    return int(number) if number.isdecimal() and int(number) else None
