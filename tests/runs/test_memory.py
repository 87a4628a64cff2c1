"""The C library keeps freed memory, unless the environment configures it differently."""

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


def faults_of(how: str, **environment: str) -> tuple[str, int]:
    """Return what ``keep_freed_memory`` returned, and how many page faults two batches of 80 MiB caused."""
    clean = {key: value for key, value in os.environ.items() if "MALLOC" not in key and key != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", CODE, how]
    done = subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=True)
    result, faults = done.stdout.split()
    return result, int(faults)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
def test_freed_memory_is_kept_for_the_next_batch() -> None:
    pages = 2 * 80 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    _, many = faults_of("leave")
    kept, few = faults_of("keep")
    assert kept == "True"
    assert few < pages / 100
    assert many > pages / 2
    _, returned = faults_of("keep and return")
    assert returned > pages / 3  # the first of the two batches gets its memory from the system again


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [{"MALLOC_TRIM_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"}]
)
def test_settings_in_the_environment_take_precedence(setting: dict[str, str]) -> None:
    kept, _ = faults_of("keep", **setting)
    assert kept == "False"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
def test_in_little_memory_less_is_kept() -> None:
    pages = 2 * 80 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    kept, faults = faults_of("keep", MMP_MEMORY=str(2**28))  # an eighth of it is less than half of a batch
    assert kept == "True"
    assert faults > pages / 4
