"""Limits of control groups, from files in the form of the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest
from control_groups import kernel_files

from mmp.cgroups import memory_limit, processor_limit

V2 = "31 23 0:28 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:3 master:1 - cgroup cgroup rw,memory\n"
)
OWN_V1 = "9:name=systemd:{own}\n4:memory:{own}\n2:cpu,cpuacct:{own}\n0::{own}\n"
GIB = 2**30


def v2(root: Path, own: str, files: dict[str, str], mounted: str = "/") -> Path:
    return kernel_files(root, f"0::{own}\n", V2.format(root=mounted), files)


def v1(root: Path, own: str, files: dict[str, str], mounted: str = "/") -> Path:
    return kernel_files(root, OWN_V1.format(own=own), V1.format(root=mounted), files)


def test_version_2_as_a_container_sees_it(tmp_path: Path) -> None:
    root = v2(tmp_path, "/", {"cpu.max": "150000 100000\n", "memory.max": f"{4 * GIB}\n"})
    assert (processor_limit(root), memory_limit(root)) == (1.5, 4 * GIB)


@pytest.mark.parametrize("smallest", ["", "pod/", "pod/box/"])
def test_the_smallest_limit_around_the_process_counts(tmp_path: Path, smallest: str) -> None:
    files = {f"{level}cpu.max": "max 100000\n" for level in ("pod/", "pod/box/")}
    files |= {f"{level}memory.max": "max\n" for level in ("pod/", "pod/box/")}
    files |= {"pod/other/cpu.max": "10000 100000", "pod/other/memory.max": "4096"}  # of another process
    root = v2(tmp_path, "/pod/box", files)
    assert (processor_limit(root), memory_limit(root)) == (None, None)
    v2(tmp_path, "/pod/box", {f"{smallest}cpu.max": "50000 20000", f"{smallest}memory.max": str(GIB)})
    assert (processor_limit(root), memory_limit(root)) == (2.5, GIB)


def test_memory_beyond_which_a_group_is_slowed_down_is_a_limit(tmp_path: Path) -> None:
    root = v2(tmp_path, "/", {"memory.max": str(4 * GIB), "memory.high": str(3 * GIB)})
    assert memory_limit(root) == 3 * GIB


def test_version_1(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n",
        "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/docker/abc/memory.limit_in_bytes": f"{2 * GIB}\n",
    }
    root = v1(tmp_path, "/docker/abc", files)
    assert (processor_limit(root), memory_limit(root)) == (2.5, 2 * GIB)


def test_a_container_of_version_1_sees_its_group_under_the_name_on_the_host(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "300000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/inner/cpu.cfs_quota_us": "50000",
        "cpu,cpuacct/inner/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": str(3 * GIB),
        "../sibling/cpu.cfs_quota_us": "10000",  # outside of all groups
        "../sibling/cpu.cfs_period_us": "100000",
    }
    root = v1(tmp_path, "/docker/abc", files, mounted="/docker/abc")
    assert (processor_limit(root), memory_limit(root)) == (3.0, 3 * GIB)
    v1(tmp_path, "/docker/abc/inner", files, mounted="/docker/abc")
    assert processor_limit(root) == 0.5
    v1(tmp_path, "/another/name", files, mounted="/docker/abc")  # what is mounted is its group, or one around it
    assert processor_limit(root) == 3.0
    v1(tmp_path, "/../../sibling", files)
    assert processor_limit(root) == 3.0


def test_both_versions_may_be_mounted(tmp_path: Path) -> None:
    files = {
        "unified/box/cpu.max": "100000 100000",
        "cpu,cpuacct/box/cpu.cfs_quota_us": "200000",
        "cpu,cpuacct/box/cpu.cfs_period_us": "100000",
    }
    unified = V2.format(root="/").replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    root = kernel_files(tmp_path, OWN_V1.format(own="/box"), V1.format(root="/") + unified, files)
    assert processor_limit(root) == 1.0


def test_a_mount_point_may_have_spaces(tmp_path: Path) -> None:
    mounts = V2.format(root="/").replace("/sys/fs/cgroup ", "/sys/fs/cgroup/all\\040groups ")
    root = kernel_files(tmp_path, "0::/a:b\n", mounts, {"all groups/a:b/cpu.max": "70000 100000"})
    assert processor_limit(root) == 0.7


@pytest.mark.parametrize("content", ["", "max", "max 100000", "word 100000", "100000 0", "-1 100000", "0 100000"])
def test_what_is_no_limit_limits_nothing(tmp_path: Path, content: str) -> None:
    assert processor_limit(v2(tmp_path, "/", {"cpu.max": content})) is None


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert (processor_limit(tmp_path), memory_limit(tmp_path)) == (None, None)
    root = kernel_files(tmp_path, "nonsense\n\n0::\n", "1 2\n - \n3 4 5 6 7 -\n", {})
    assert (processor_limit(root), memory_limit(root)) == (None, None)
