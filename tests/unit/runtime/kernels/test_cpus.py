"""A session takes no more threads than the process has CPUs: those of its affinity, within its container's quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from jakiro_runtime.kernels.cpus import physical_cores


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight CPUs on four cores, all of them allowed."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for cpu in range(8):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_two_threads_of_a_core_count_once(root: Path) -> None:
    assert physical_cores(root) == 4


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 1), ("5000 100000", 1)])
def test_a_quota_limits_them(root: Path, limit: str, cores: int) -> None:
    write(root / "proc/self/cgroup", "0::/pod/container\n")
    write(root / "sys/fs/cgroup/pod/container/cpu.max", limit)
    assert physical_cores(root) == cores


def test_a_parents_quota_holds_too(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/pod/container\n")
    write(root / "sys/fs/cgroup/pod/cpu.max", "300000 100000")
    write(root / "sys/fs/cgroup/pod/container/cpu.max", "max 100000")
    assert physical_cores(root) == 3


@pytest.mark.parametrize(("quota", "cores"), [("-1", 4), ("200000", 2)])
def test_a_quota_of_version_1(root: Path, quota: str, cores: int) -> None:
    write(root / "proc/self/cgroup", "5:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n")
    write(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota)  # the container sees its own group as the root
    write(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert physical_cores(root) == cores
