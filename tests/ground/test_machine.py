"""The cores and the memory that a process may use: the smallest of all limits, in this process and in real ones."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import warm
from control_groups import kernel_files, real_group
from places import ROOT
from warm import LIMIT

from mmp.errors import MmpError
from mmp.machine import Cores, Memory, cores, memory

SET_BY_HAND = (
    *("SLURM_CPUS_PER_TASK", "LOKY_MAX_CPU_COUNT", "MMP_CORES"),
    *("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE", "MMP_MEMORY"),
)
GIB = 2**30
V2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
ENTER = ("sh", "-c", 'echo $$ > "$0" && exec "$@"')  # a control group, then run a command


@pytest.fixture(autouse=True)
def a_free_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process have eight cores and 64 GiB."""
    for name in SET_BY_HAND:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**24}[name])
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def described(code: str, *before: str) -> str:
    """Return what a new process prints; ``before`` is a command that starts it."""
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_HAND}
    command = [*before, sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_limits_all_cores_may_be_used(tmp_path: Path) -> None:
    found = cores(tmp_path)
    assert (found, found.whole) == (Cores(8, 8), 8)
    assert found.describe() == "8 of 8 cores may be used"


@pytest.mark.parametrize(
    ("affinity", "quota", "variables", "usable", "limit"),
    [
        ([0, 3, 5], "max 100000", {}, 3, "processor affinity"),
        (range(8), "150000 100000", {}, 1.5, "quota of the control group"),
        (range(2), "150000 100000", {"SLURM_CPUS_PER_TASK": "1"}, 1, "SLURM_CPUS_PER_TASK"),
        (range(8), "max 100000", {"SLURM_CPUS_PER_TASK": "4", "MMP_CORES": "2"}, 2, "MMP_CORES"),
        (range(8), "max 100000", {"LOKY_MAX_CPU_COUNT": "5"}, 5, "LOKY_MAX_CPU_COUNT"),
        (range(8), "1600000 100000", {"SLURM_CPUS_PER_TASK": "99", "LOKY_MAX_CPU_COUNT": "all"}, 8, None),
        (range(8), "50000 100000", {"SLURM_CPUS_PER_TASK": "0"}, 0.5, "quota of the control group"),
        (range(8), "max 100000", {"MMP_CORES": " 3"}, 3, "MMP_CORES"),
        (range(8), "max 100000", {"MMP_CORES": "1.5"}, 1.5, "MMP_CORES"),
        (range(8), "max 100000", {"MMP_CORES": ""}, 8, None),
    ],
)
def test_the_smallest_limit_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    affinity: Sequence[int],
    quota: str,
    variables: dict[str, str],
    usable: float,
    limit: str | None,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(affinity))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cores(kernel_files(tmp_path, "0::/\n", V2, {"cpu.max": quota})) == Cores(usable, 8, limit)


def test_threads_are_for_whole_cores_and_at_least_one() -> None:
    assert [Cores(usable, 16).whole for usable in (0.2, 1.0, 1.9, 2.0, 16.0)] == [1, 1, 1, 2, 16]
    assert Cores(1.5, 16, "quota").describe() == "1.5 of 16 cores may be used (quota)"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_taskset_in_a_real_process() -> None:
    code = "from mmp.machine import cores; print(cores().whole, cores().limit)"
    number, limit = described(code, "taskset", "-c", "0").split(" ", 1)
    assert number == "1"
    assert limit in ("processor affinity", "None")  # None: the machine has only one core


@pytest.mark.slow
def test_the_quota_of_a_real_control_group() -> None:
    def quota(tenths: int) -> dict[str, str]:
        return {
            "cpu.cfs_period_us": "100000",
            "cpu.cfs_quota_us": f"{tenths}0000",
            "cpu.max": f"{tenths}0000 100000",
        }

    code = "from mmp.machine import cores; print(cores().usable, cores().limit)"
    with real_group("cpu", quota(7)) as processes:
        assert described(code, *ENTER, str(processes)) == "0.7 quota of the control group"
    with real_group("cpu", quota(6), nested=quota(5)) as processes:
        assert described(code, *ENTER, str(processes)) == "0.5 quota of the control group"
    with real_group("cpu", quota(4), nested={}) as processes:
        assert described(code, *ENTER, str(processes)) == "0.4 quota of the control group"


@pytest.mark.parametrize(
    ("group", "kind", "most", "variables", "usable", "limit"),
    [
        ("max", None, 0, {}, 64 * GIB, None),
        (str(4 * GIB), None, 0, {}, 4 * GIB, "limit of the control group"),
        (str(4 * GIB), resource.RLIMIT_AS, 3 * GIB, {}, 3 * GIB, "ulimit -v"),
        ("max", resource.RLIMIT_DATA, 5 * GIB, {}, 5 * GIB, "ulimit -d"),
        (str(4 * GIB), None, 0, {"SLURM_MEM_PER_NODE": "2048"}, 2 * GIB, "SLURM_MEM_PER_NODE"),
        ("max", None, 0, {"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "6"}, 6 * GIB, "SLURM_MEM_PER_CPU"),
        (str(4 * GIB), None, 0, {"MMP_MEMORY": str(GIB)}, GIB, "MMP_MEMORY"),
        (str(99 * GIB), None, 0, {"MMP_MEMORY": " ", "SLURM_MEM_PER_NODE": "0"}, 64 * GIB, None),
        ("max", None, 0, {"MMP_MEMORY": " 4e9\n"}, 4 * 10**9, "MMP_MEMORY"),
    ],
)
def test_the_smallest_limit_of_memory_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: str,
    kind: int | None,
    most: int,
    variables: dict[str, str],
    usable: int,
    limit: str | None,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (most if asked == kind else resource.RLIM_INFINITY, -1))
    assert memory(kernel_files(tmp_path, "0::/\n", V2, {"memory.max": group})) == Memory(usable, 64 * GIB, limit)


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        *(("MMP_CORES", value, cores) for value in ("all", "0", "-2", "nan", "inf", "2 cores")),
        *(("MMP_MEMORY", value, memory) for value in ("4GB", "4 GiB", "0", "-1", "nan", "inf", "0x10")),
    ],
)
def test_an_unreadable_setting_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, read: Callable[[Path], object]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(MmpError, match=rf"^{name}={value}: must be a positive number of .*; correct .* or unset it$"):
        read(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["MMP_CORES=all", "MMP_MEMORY=4GB"])
@pytest.mark.parametrize("arguments", ["train.py", "prune.py", "prune.py -m", "prune.py -m hydra/launcher=joblib"])
def test_a_command_refuses_an_unreadable_setting_in_one_line(tmp_path: Path, setting: str, arguments: str) -> None:
    places = [f"paths.results={tmp_path}", f"paths.cache={tmp_path}", "model=cnn", "data=digits", "logger=none"]
    name, _, value = setting.partition("=")
    done = warm.run([*arguments.split(), *places], {**os.environ, name: value})
    assert done.returncode == 1
    shown = [line for line in (done.stdout + done.stderr).splitlines() if setting in line]
    assert shown, done.stderr
    assert f"{setting}: must be a positive number of " in shown[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_memory_is_described_with_its_limit() -> None:
    assert Memory(4 * 10**9, 64 * 10**9, "quota").describe() == "4 of 64 GB may be used (quota)"
    assert Memory(64 * 10**9, 64 * 10**9).describe() == "the machine has 64 GB"


@pytest.mark.slow
def test_the_memory_of_a_real_control_group() -> None:
    def limited(mib: int) -> dict[str, str]:
        return {"memory.limit_in_bytes": str(mib * 2**20), "memory.max": str(mib * 2**20)}

    code = "from mmp.machine import memory; print(memory().usable // 2**20, memory().limit)"
    with real_group("memory", limited(600)) as processes:
        assert described(code, *ENTER, str(processes)) == "600 limit of the control group"
    with real_group("memory", limited(500), nested=limited(700)) as processes:
        assert described(code, *ENTER, str(processes)) == "500 limit of the control group"


@pytest.mark.slow
def test_other_systems_have_fewer_limits() -> None:
    without = "sys.platform = 'win32'; sys.modules['resource'] = None; del os.sysconf, os.sched_getaffinity"
    shown = "from mmp.machine import cores, memory; print(cores().limit, memory().usable > 0)"
    assert described(f"import os, sys; {without}; {shown}").endswith(" True")


@pytest.mark.slow
def test_an_address_space_that_is_limited() -> None:
    code = "from mmp.machine import memory; print(memory().usable // 2**20, memory().limit)"
    assert described(code, "sh", "-c", 'ulimit -v 614400 && exec "$0" "$@"') == "600 ulimit -v"
