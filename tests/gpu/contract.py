"""`make test-gpu`: runs the contract on this machine's GPU, prints what was found and writes out/gpu/report.{txt,json} to send.

Exit status: 0 everything that could run passed; 1 something failed, or there is no GPU.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from jakiro_runtime.backends import gpu
from jakiro_runtime.errors import EngineError

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / "out" / "gpu"
PACKAGES = (
    "jakiro-export", "numpy", "onnx", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-libs",
    "cuda-bindings", "polygraphy",
)  # fmt: skip


class Collector:
    """Takes every test's outcome and figures as pytest goes."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        reason = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            lines = [line[2:] for line in report.longreprtext.splitlines() if line.startswith("E ")]
            reason = " ".join(" ".join(lines[:6]).split())
        name = report.nodeid.partition("::")[2]
        self.results.append(
            {
                "check": name, "outcome": report.outcome, "seconds": round(report.duration, 1), "reason": reason,
                "figures": dict(report.user_properties),
            }
        )  # fmt: skip


def machine(device: gpu.Device) -> dict[str, Any]:
    """What a reader of the report must know."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    driver = _say("nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.memory", "--format=csv,noheader")
    return {
        "gpu": device.name, "sm": device.sm, "memory GiB": round(device.total / 2**30, 1), "shared memory": device.shared,
        "driver, power limit, memory clock": driver or _say("cat", "/etc/nv_tegra_release"),
        "nvcc": (_say("nvcc", "--version") or "").rpartition("release ")[2],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}", "python": platform.python_version(),
        "commit": _say("git", "-C", str(HERE), "rev-parse", "--short", "HEAD"), "packages": found,
    }  # fmt: skip


def _say(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 and done.stdout.strip() else None


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = ["Jakiro on a GPU", ""]
    lines += [f"  {name}: {value}" for name, value in report["machine"].items()]
    lines.append("")
    for result in report["checks"]:
        lines.append(f"  {result['outcome']:8}{result['check']} ({result['seconds']} s)")
        if result["reason"]:
            lines.append(f"          {result['reason']}")
        lines += [f"          {name}: {json.dumps(figures)}" for name, figures in result["figures"].items()]
    counts = {kind: sum(r["outcome"] == kind for r in report["checks"]) for kind in ("passed", "failed", "skipped")}
    lines += ["", ", ".join(f"{count} {kind}" for kind, count in counts.items())]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, print, write."""
    try:
        device = gpu.find(hint="run make test-gpu on a machine that has an NVIDIA GPU")
    except EngineError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    shutil.rmtree(WORK, ignore_errors=True)
    collector = Collector()
    status = pytest.main([str(HERE), "-m", "gpu", "-q", "--no-header", "--tb=short", *sys.argv[1:]], plugins=[collector])
    report = {"machine": machine(device), "checks": collector.results}
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (WORK / "report.txt").write_text(text(report), encoding="utf-8")
    print(f"\n{text(report)}\nWritten to {WORK / 'report.txt'} and report.json; please send both.")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
