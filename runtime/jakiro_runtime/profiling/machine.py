"""Description of the machine: processor, cores, memory, versions, and how busy it is."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jakiro_runtime.kernels.cpus import physical_cores

PACKAGES = ("jakiro-export", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")


def describe(threads: int | None) -> dict[str, Any]:
    """The processor, its cores, the memory and the versions.

    Args:
        threads: what the engine was asked to use; None is one per physical core
    """
    versions = {name: found for name in PACKAGES if (found := package_version(name))}
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "logical_cores": os.cpu_count(),
        "physical_cores": physical_cores(),
        "threads": threads or physical_cores(),
        "memory_mb": _memory_mb(),
        "python": platform.python_version(),
        "versions": versions,
    }


def package_version(name: str) -> str | None:
    """A distribution's version, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def load_average() -> float | None:
    """Processes that wanted to run in the last minute, ours among them; None where the system does not count them."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


class OtherLoad:
    """How much of the processors other programs take, counted from its creation on."""

    def __init__(self) -> None:
        self._before = _processor_seconds()

    def share(self) -> float | None:
        """0 to 1 of all processors; None where the system does not count."""
        now = _processor_seconds()
        if self._before is None or now is None:
            return None
        all_, busy, ours = (late - early for late, early in zip(now, self._before, strict=True))
        return round(max(0.0, busy - ours) / all_, 3) if all_ > 0 else 0.0


def _processor_seconds() -> tuple[float, float, float] | None:
    """Seconds of all processors since the system began, those of them that were not idle, and this process's."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        ticks = [int(each) for each in line.split()[1:9]]  # user nice system idle iowait irq softirq steal
        second = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    own = os.times()
    return sum(ticks) / second, (sum(ticks) - ticks[3] - ticks[4]) / second, own.user + own.system


def peak_memory_mb() -> float | None:
    """The most memory that this process ever had resident, in MB of 10^6 bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


def _memory_mb() -> int | None:
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6)
    except (ValueError, OSError, AttributeError):
        return None
