"""libjakiro_plugins.so for this machine's GPU: one that is named, one that was built before, or built here with nvcc alone."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tier_harness import ROOT, Skip, nvcc


def plugin_library(sm: int, figures: dict[str, Any]) -> Path:
    """The library's path. Raises Skip where there is neither one nor nvcc."""
    named = os.environ.get("JAKIRO_PLUGIN")
    if named:
        return Path(named)
    for shipped in (ROOT / "kit" / f"sm{sm}" / "libjakiro_plugins.so", ROOT / "kit" / "libjakiro_plugins.so"):
        if shipped.exists():
            return shipped
    compiler = nvcc()
    if compiler is None:
        raise Skip(
            "there is no libjakiro_plugins.so for this GPU and no nvcc to build it: install CUDA's toolkit, or set JAKIRO_PLUGIN"
        )
    folder = ROOT / "out" / "gpu" / "plugins" / f"sm{sm}"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libjakiro_plugins.so"
    sources = sorted((ROOT / "plugins" / "kernels").glob("*.cu"))
    newest = max(file.stat().st_mtime for file in (ROOT / "plugins").rglob("*.*"))
    if library.exists() and library.stat().st_mtime > newest:
        return library
    flags = [
        "-O3",
        "-std=c++17",
        f"-arch=sm_{sm}",
        "-Xcompiler",
        "-fPIC,-fvisibility=hidden",
        f"-I{ROOT / 'plugins' / 'include'}",
    ]
    start = time.perf_counter()

    def compile(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        _run([compiler, *flags, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile, sources))
    _run([compiler, "-shared", f"-arch=sm_{sm}", "-cudart", "static", *map(str, objects), "-o", str(library)])
    figures["built here in s"] = round(time.perf_counter() - start, 1)
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-500:]}")
