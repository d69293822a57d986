"""CPU cores that this process may use: its affinity, and the quota of its control group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def physical_cores(root: Path = _ROOT) -> int:
    """Physical cores this process may run on, at most as many as its CPU quota lets run at once; at least 1.

    root: where /proc and /sys are
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add((root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(cpu))
    return max(1, min(len(siblings), int(min(_quotas(root), default=len(siblings)))))


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that each control group of this process grants, where it sets a limit: a container's is one of them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:  # hierarchy:controllers:path; version 2 has neither number nor controllers
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / path.lstrip("/")
        while group.is_relative_to(
            mount
        ):  # a limit of any parent holds; a container may not see its own path, but sees the mount
            yield from _quota(group)
            group = group.parent


def _quota(group: Path) -> Iterator[float]:
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):  # no such group, or "max"
        return
