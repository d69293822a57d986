"""The runtime's own CPU kernels for ONNX Runtime: compiled on first use, for this processor, and kept in the user's cache.

They replace the bodies of operators that an int8 or int4 engine is written with. Without them (no AVX2, no compiler, or
JAKIRO_KERNELS=0) ONNX Runtime runs those bodies: the same contract, slower.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_SOURCES = Path(__file__).resolve().parent
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"]
_SECONDS = 120
_INSTRUCTIONS = {"avx2", "fma", "f16c"}  # with AVX-512 VNNI they take other forms: simd.h, simd_int.h, int8.h, int4.h


def needed(graph: Path) -> bool:
    """Whether an ONNX file, its weights beside it, has operators that a kernel can replace."""
    return graph.is_file() and b"RowInt" in graph.read_bytes()


@cache
def library() -> Path | None:
    """The compiled kernels; None where they cannot be had or are switched off."""
    if os.environ.get("JAKIRO_KERNELS", "1") == "0" or not set(_processor().split()) >= _INSTRUCTIONS:
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        return None
    try:
        return _compiled(compiler)
    except (OSError, subprocess.SubprocessError):
        return None


def _compiled(compiler: str, *more: str) -> Path:
    flags, sources = [*_FLAGS, *more], sorted(_SOURCES.glob("*.cpp"))
    digest = hashlib.sha256(" ".join([compiler, *flags, _processor()]).encode())
    for source in [*sources, *sorted(_SOURCES.glob("*.h"))]:
        digest.update(source.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jakiro"
    place = folder / f"kernels-{digest.hexdigest()[:16]}.so"
    if not place.is_file():
        if sys.stderr.isatty():
            print(f"Compiling kernels for this processor, once; they are kept in {folder}.", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / place.name
            command = [compiler, *flags, *map(str, sources), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
            made.replace(place)  # whole or not at all, also where two processes compile at once
    return place


def _processor() -> str:
    """What `-march=native` depends on: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features", "CPU part"))}))
