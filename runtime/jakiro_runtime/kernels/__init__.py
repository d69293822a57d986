"""The runtime's own CPU kernels for ONNX Runtime: carried by the wheel, or compiled on first use and cached for the user.

They replace the bodies of operators that an int8 or int4 engine is written with. Without them (no AVX2, no compiler, or
JAKIRO_KERNELS=0) ONNX Runtime runs those bodies: the same results, several times slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from jakiro_runtime.kernels import prebuilt
from jakiro_runtime.kernels.library_cache import KernelError, LibraryCache

_FLAGS = [*prebuilt.FLAGS, "-march=native"]
_TIMEOUT_S = 300


def needed(graph: Path) -> bool:
    """Whether an ONNX file has operators that a kernel can replace."""
    return graph.is_file() and b"RowInt" in graph.read_bytes()


@cache
def library() -> Path | None:
    """The kernels' library; None where it cannot be had, with one warning on stderr, or is switched off."""
    flags = set(_cpu().split())
    if os.environ.get("JAKIRO_KERNELS", "1") == "0" or not flags >= prebuilt.LEAST:
        return None
    carried = prebuilt.find(flags)
    if carried is not None and _load_error(carried) is None:
        return carried
    try:
        return compiled(_compiler())
    except KernelError as error:
        reason = str(error)
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        reason = f"{error.cmd[0]} failed with exit code {error.returncode}" + "".join(f" ({line})" for line in last)
    except subprocess.TimeoutExpired as error:
        reason = f"{error.cmd[0]} did not finish within {_TIMEOUT_S} s"
    except OSError as error:
        reason = f"they could not be compiled and stored ({error})"
    print(
        f"Warning: The CPU kernels are not used, and int8 and int4 engines run several times slower: {reason}.", file=sys.stderr
    )
    return None


def _compiler() -> str:
    compiler = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")
    if compiler is None:
        raise KernelError("no C++ compiler was found; install one (Debian, Ubuntu: apt install g++) or name it in CXX")
    return compiler


def compiled(compiler: str, *more_flags: str) -> Path:
    """The library as this compiler makes it, from the cache where it is there intact.

    Raises:
        KernelError: the cache folder is not private, or the system does not load libraries from it
        OSError, subprocess.SubprocessError: the compiler or the disk fails
    """
    flags, sources = [*_FLAGS, *more_flags], sorted(prebuilt.SOURCES.glob("*.cpp"))
    digest = hashlib.sha256(" ".join([compiler, *flags, _cpu()]).encode())
    for source in [*sources, *sorted(prebuilt.SOURCES.glob("*.h"))]:
        digest.update(source.read_bytes())
    cached, name = LibraryCache.of_user(), f"kernels-{digest.hexdigest()[:16]}.so"
    found = cached.find(name)
    if found is not None and _load_error(found) is None:
        return found
    if sys.stderr.isatty():
        print(f"Compiling kernels for this CPU, once; they are cached in {cached.folder}.", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cached.folder) as work:
        made = Path(work) / name
        command = [compiler, *flags, *map(str, sources), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
        stored = cached.store(made, name)
    if error := _load_error(stored):
        raise KernelError(f"{stored} cannot be loaded ({error}); name another cache folder in XDG_CACHE_HOME")
    return stored


def _load_error(path: Path) -> OSError | None:
    """Why the system does not load a library: it is for another CPU architecture, or its disk is mounted noexec."""
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return error
    return None


def _cpu() -> str:
    """What `-march=native` depends on: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features", "CPU part"))}))
