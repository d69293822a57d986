"""The driver's calls: declared as NVIDIA's headers have them, and one sentence for every error that a user meets."""

from __future__ import annotations

import ctypes
import glob
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import plugin_wheels
from fake_driver import driver
from jakiro_runtime.backends import cuda_driver
from jakiro_runtime.backends.cuda_driver import PROTOTYPES, Driver
from jakiro_runtime.errors import EngineError


def no_device_files(monkeypatch: pytest.MonkeyPatch, *files: str, locked: bool = False) -> None:
    monkeypatch.setattr(glob, "glob", lambda pattern: [file for file in files if file.startswith(pattern[:8])][:1])
    monkeypatch.setattr(os, "access", lambda *_: not locked)
    monkeypatch.setattr(os.path, "exists", lambda path: False)


def test_no_driver() -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver.*a machine that has an NVIDIA GPU"):
        Driver("libcuda-of-no-machine.so.1")


@pytest.mark.parametrize(
    ("init", "count", "reason"),
    [
        (100, 1, r"no CUDA-capable device is detected \(CUDA error 100\)"),
        (0, 0, "CUDA_VISIBLE_DEVICES"),
        (46, 1, "another process holds the device"),
        (803, 1, "restart the machine"),
        (999, 1, "nvidia-smi should work"),
        (34, 1, "lib/stubs"),
    ],
)
def test_a_driver_that_shows_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: int, count: int, reason: str) -> None:
    library = driver(tmp_path, init, count)
    no_device_files(monkeypatch)
    with pytest.raises(EngineError, match=f"shows no GPU.*{reason}.*; look there"):
        Driver(library, "look there")


def test_a_user_who_may_not_open_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = driver(tmp_path, 999)
    no_device_files(monkeypatch, "/dev/nvmap", locked=True)
    with pytest.raises(EngineError, match=r"may not open /dev/nvmap; sudo usermod -aG video,render"):
        Driver(library)


def test_a_container_without_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = driver(tmp_path, 100)
    no_device_files(monkeypatch)
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/.dockerenv")
    with pytest.raises(EngineError, match="--gpus all, on a Jetson with --runtime nvidia"):
        Driver(library)


def test_a_driver_of_long_ago(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="driver is too old: it has no cuMemAlloc_v2; install one for CUDA 12"):
        Driver(driver(tmp_path, lacks="cuMemAlloc_v2"))


def test_memory_that_is_full_says_how_full(tmp_path: Path) -> None:
    full = Driver(driver(tmp_path, allocate=2))
    with pytest.raises(EngineError, match=r"out of memory: 2,048 MiB more.*5 MiB of 9 MiB are free.*shorter context"):
        full.allocate(2 << 30)
    assert Driver(driver(tmp_path)).allocate(2 << 30) == 4096


def test_a_library_made_for_a_newer_cuda_than_the_driver(tmp_path: Path) -> None:
    """What CUDA 13's runtime, inside a plugin library or TensorRT, returns on JetPack 6's driver."""
    found = Driver(driver(tmp_path))
    assert found.version == (12, 6)
    with pytest.raises(EngineError, match=r"^The plugin library: it fails \(CUDA error 35\); the driver is older than the CUDA"):
        found.check(35, "The plugin library")


def header(which: str) -> Path:
    """cuda.h of the installed toolkit, or that of JetPack 6's CUDA, which a wheel carries."""
    if which == "12.6":
        return plugin_wheels.unpacked("nvidia-cuda-runtime-cu12==12.6.77") / "nvidia" / "cuda_runtime" / "include" / "cuda.h"
    toolkit = Path("/usr/local/cuda/include/cuda.h")
    if not toolkit.exists():
        pytest.skip(f"needs the CUDA toolkit's {toolkit}")
    return toolkit


def parameters(text: str, name: str) -> list[str]:
    # the header spells some names as the newest version that it has
    found = re.search(rf"\bCUresult CUDAAPI {re.sub('_v2$|WithFlags$', '', name)}(?:_v2)?\(([^;]*)\);", text)
    assert found is not None, f"{name} is not in cuda.h"
    return [" ".join(each.split()) for each in found.group(1).split(",")]


# How a C type of the header is passed
_KINDS: dict[str, Any] = {
    "unsigned int": ctypes.c_uint, "int": ctypes.c_int, "size_t": ctypes.c_size_t, "CUdeviceptr": ctypes.c_uint64,
    "unsigned char": ctypes.c_uint8, "unsigned long long": ctypes.c_ulonglong, "cuuint64_t": ctypes.c_uint64,
    "CUdevice": ctypes.c_int, "CUresult": ctypes.c_int, "CUdevice_attribute": ctypes.c_int, "CUstreamCaptureMode": ctypes.c_int,
}  # fmt: skip


@pytest.mark.parametrize("which", ["12.6", "installed"])
def test_every_call_is_declared_as_in_the_header(which: str) -> None:
    text = header(which).read_text(errors="replace")
    for name, types in PROTOTYPES.items():
        stated = parameters(text, name)
        assert len(stated) == len(types), f"{name}: {stated}"
        for parameter, given in zip(stated, types, strict=True):
            kind = re.sub(r"\bconst\b", "", parameter).strip()
            if "*" in kind:
                assert issubclass(given, (ctypes._Pointer, ctypes.c_char_p, ctypes.c_void_p)), f"{name}: {parameter}"
                continue
            wanted = _KINDS.get(kind.rsplit(" ", 1)[0].strip(), ctypes.c_void_p)  # the others are handles
            assert ctypes.sizeof(given) == ctypes.sizeof(wanted), f"{name}: {parameter} as {given}"


@pytest.mark.parametrize("which", ["12.6", "installed"])
def test_the_box_of_a_copy_lies_in_memory_as_in_the_header(tmp_path: Path, which: str) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc")
    names = [name for name, *_ in cuda_driver._Copy3D._fields_]
    prints = "".join(f'printf("%zu ", offsetof(CUDA_MEMCPY3D, {name}));' for name in names)
    source = tmp_path / "layout.c"
    source.write_text(f"#include <cuda.h>\n#include <stdio.h>\n#include <stddef.h>\nint main() {{ {prints} return 0; }}\n")
    command = [compiler, f"-I{header(which).parent}", str(source), "-o", str(tmp_path / "layout")]
    subprocess.run(command, check=True)
    offsets = subprocess.run([str(tmp_path / "layout")], capture_output=True, text=True, check=True).stdout.split()
    assert [getattr(cuda_driver._Copy3D, name).offset for name in names] == list(map(int, offsets))
