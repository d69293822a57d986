"""Tier 0: what this machine has: its GPU and driver, and for every other tier whether it can run, or which package it lacks.

Needs Python alone.

    python3 tests/gpu/tiers/tier0_probe.py [--json FILE]
"""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import tier_harness as harness
from tier_harness import ROOT, Checklist, Skip, has, nvcc, program

PACKAGES = (
    "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu13-libs",
    "tokenizers", "torch",
)  # fmt: skip
RUNTIME = ("numpy", "tokenizers", "jinja2", "click", "rich")


def lacking(*modules: str) -> str:
    """What to install of these modules; empty where all are there."""
    absent = [name for name in modules if not has(name)]
    return f"install {' '.join(absent)} (python3 -m pip install {' '.join(absent)})" if absent else ""


def has_library(sm: int) -> bool:
    shipped = (ROOT / "kit" / f"sm{sm}" / "libjakiro_plugins.so", ROOT / "kit" / "libjakiro_plugins.so")
    return bool(os.environ.get("JAKIRO_PLUGIN")) or any(file.exists() for file in shipped)


def fixture() -> Path | None:
    """The tiny engine of the kit, or the one that `make test-gpu` exports."""
    found = (ROOT / "kit" / "tiny", ROOT / "out" / "gpu" / "tiny")
    return next((folder for folder in found if (folder / "answers.json").exists()), None)


def reasons(gpu: bool, sm: int = 0) -> dict[str, str]:
    """By tier: why it cannot run; empty where it can."""
    driver = "" if gpu else "there is no GPU"
    engine = "" if fixture() else "take the kit with its tiny engine (make test-gpu-kit), or install torch and run make test-gpu"
    rtx = tensorrt = ""
    if not (has("tensorrt_rtx") or has("tensorrt_rtx_bindings")):
        rtx = "install TensorRT-RTX: python3 -m pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs"
    if not (has("tensorrt") or has("tensorrt_bindings")):
        tensorrt = "install tensorrt: it comes with JetPack, elsewhere python3 -m pip install tensorrt-cu12 or tensorrt-cu13"
    cuda = lacking("onnxruntime")
    if not cuda:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            cuda = f"onnxruntime {onnxruntime.__version__} has no CUDA: install onnxruntime-gpu"
    compiler = (
        "" if nvcc() or has_library(sm) else "install nvcc (CUDA's toolkit), or name a libjakiro_plugins.so in JAKIRO_PLUGIN"
    )
    own = "" if os.environ.get("JAKIRO_ENGINE") else "name your engine directory in JAKIRO_ENGINE"
    needs = {
        "1": (driver, lacking("numpy"), compiler),
        "1b": (driver, lacking("numpy")),
        "2": (driver, lacking(*RUNTIME), cuda, engine),
        "3": (driver, tensorrt, lacking(*RUNTIME, "onnx"), engine),
        "4": (driver, rtx, lacking(*RUNTIME, "onnx"), engine),
        "5": (driver, lacking(*RUNTIME), own),
    }
    return {tier: "; ".join(filter(None, reasons)) for tier, reasons in needs.items()}


def main() -> int:
    options = harness.arguments().parse_args()
    checks = Checklist("0", "probe", options.json)
    checks.facts.update(
        system=f"{platform.system()} {platform.release()} {platform.machine()}", python=platform.python_version(),
        nvcc=program(nvcc() or "nvcc", "--version"), jetpack=program("cat", "/etc/nv_tegra_release"),
        commit=program("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
    )  # fmt: skip
    for name in PACKAGES:
        try:
            checks.facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    harness.bare_runtime()
    package = ModuleType("jakiro_runtime.backends")  # whose own head needs NumPy
    package.__path__ = [str(ROOT / "runtime" / "jakiro_runtime" / "backends")]
    sys.modules["jakiro_runtime.backends"] = package
    from jakiro_runtime.backends import cuda_driver

    sm = 0
    with checks.check("a GPU and its driver") as figures:
        driver = cuda_driver.Driver()
        sm = driver.attribute(cuda_driver.MAJOR) * 10 + driver.attribute(cuda_driver.MINOR)
        free, total = driver.memory()
        figures.update(
            gpu=driver.name(), sm=sm, CUDA=".".join(map(str, driver.version)),
            memory=f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
        )  # fmt: skip
        figures["shared with the host"] = bool(driver.attribute(cuda_driver.INTEGRATED))
    for tier, reason in reasons(sm > 0, sm).items():
        with checks.check(f"tier {tier} can run"):
            if reason:
                raise Skip(reason)
    return checks.done()


if __name__ == "__main__":
    sys.exit(main())
