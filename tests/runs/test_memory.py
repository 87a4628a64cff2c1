"""The heap: freed memory stays, unless somebody has set it otherwise."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
from places import ROOT

CODE = """
import resource, sys
from mmp.runs.memory import keep_freed_memory, return_freed_memory
kept = keep_freed_memory() if "keep" in sys.argv[1] else None
def batch():
    blocks = [bytearray(20 * 2**20) for _ in range(4)]
batch(); batch()
if "return" in sys.argv[1]: return_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
batch(); batch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def told(how: str, **environment: str) -> tuple[str, int]:
    """Return what the function said, and how many pages two batches of 80 MiB needed from the system."""
    clean = {key: value for key, value in os.environ.items() if "MALLOC" not in key and key != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", CODE, how]
    done = subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=True)
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
def test_freed_memory_is_kept_for_the_next_batch() -> None:
    pages = 2 * 80 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    _, returned = told("leave")
    said, kept = told("keep")
    assert said == "True"
    assert kept < pages / 100
    assert returned > pages / 2
    _, given_back = told("keep and return")
    assert given_back > pages / 3  # of the first of two batches, which gets anew what was returned before it


@pytest.mark.parametrize(
    "setting", [{"MALLOC_TRIM_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"}]
)
def test_what_the_environment_says_wins(setting: dict[str, str]) -> None:
    said, _ = told("keep", **setting)
    assert said == "False"
