"""The CUDA sources through NVIDIA's own compilers: for Orin as JetPack 6 has them, and with the nvcc at hand. Nothing is run."""

from __future__ import annotations

import ctypes
import re
import shutil
from pathlib import Path

import pytest

import plugin_library
import plugin_wheels
from plugin_library import SOURCES, run

pytestmark = pytest.mark.slow

# Every kernel, for every type and tile count that expert_dispatch.cuh can launch.
ALL_KERNELS = """
#include "combine.cuh"
#include "down_each.cuh"
#include "down_pair.cuh"
#include "group_matmul.cuh"
#include "gate_up.cuh"
#include "kv_commit.cuh"
#include "route.cuh"
namespace jakiro {
#define TILES(T, tiles, aligned)                                    \\
  template __global__ void gate_up<T, tiles, aligned>(GateUp<T>);   \\
  template __global__ void down_pair<T, tiles, aligned>(DownPair<T>); \\
  template __global__ void down_each<T, tiles, aligned>(DownEach<T>);
#define TYPE(T)                                                                                             \\
  TILES(T, 1, true) TILES(T, 2, true) TILES(T, 4, true) TILES(T, 8, true) TILES(T, 16, true) TILES(T, 16, false) \\
  template __global__ void route<T>(Route<T>);                                                              \\
  template __global__ void combine<T>(Combine<T>);
TYPE(float) TYPE(half) TYPE(bfloat16)
#define GROUPS(T, tiles) template __global__ void group_matmul<T, tiles>(GroupMatmul<T>);
GROUPS(half, 1) GROUPS(half, 2) GROUPS(half, 4) GROUPS(half, 8)
GROUPS(bfloat16, 1) GROUPS(bfloat16, 2) GROUPS(bfloat16, 4) GROUPS(bfloat16, 8)
}  // namespace jakiro
"""
KERNELS = 3 * (3 * 6 + 2) + 2 * 4 + 1
# NVRTC sees no C library; these are what the kernels take from one.
HEADERS = {
    "stddef.h": "",
    "stdint.h": """typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t; typedef int int32_t;
        typedef unsigned short uint16_t; typedef unsigned uint32_t; typedef long long int64_t;
        typedef unsigned long long uint64_t; typedef unsigned long uintptr_t;""",
}


def strings(values: list[str]) -> ctypes.Array:
    return (ctypes.c_char_p * len(values))(*[value.encode() for value in values])


def compile_with_nvrtc(source: str, architecture: str) -> tuple[int, str, bytes]:
    """(0 or an error code, the compiler's log, the binary) of NVRTC 12.6, JetPack 6's CUDA."""
    nvrtc = plugin_wheels.unpacked("nvidia-cuda-nvrtc-cu12==12.6.85") / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"
    runtime = plugin_wheels.unpacked("nvidia-cuda-runtime-cu12==12.6.77") / "nvidia" / "cuda_runtime" / "include"
    library, program, size = ctypes.CDLL(str(nvrtc)), ctypes.c_void_p(), ctypes.c_size_t()
    library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernels.cu", len(HEADERS), strings([*HEADERS.values()]), strings([*HEADERS])
    )
    folders = [f"-I{folder}" for folder in (SOURCES / "kernels", SOURCES / "include", runtime)]
    options = ["-std=c++17", "-default-device", "-DINFINITY=__int_as_float(0x7f800000)", "--ptxas-options=-v", *folders]
    options.append(f"--gpu-architecture={architecture}")
    code = library.nvrtcCompileProgram(program, len(options), strings(options))
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    binary = ctypes.create_string_buffer(0)
    if code == 0:
        library.nvrtcGetCUBINSize(program, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        library.nvrtcGetCUBIN(program, binary)
    return code, log.value.decode(), binary.raw


def test_every_kernel_compiles_for_orin_with_cuda_12_6_and_spills_no_register() -> None:
    code, log, binary = compile_with_nvrtc(ALL_KERNELS, "sm_87")
    assert code == 0, log
    assert binary[:4] == b"\x7fELF"
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(spills) == KERNELS
    assert set(spills) == {("0", "0")}, log


def test_the_compiler_would_say_what_is_wrong() -> None:
    code, log, _ = compile_with_nvrtc('#include "route.cuh"\n__global__ void k() { jakiro::no_such_thing(); }', "sm_87")
    assert code != 0
    assert "no_such_thing" in log


def test_cmake_builds_plugin_and_kernels_for_several_gpus(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None or shutil.which("cmake") is None:
        pytest.skip("needs nvcc and cmake")
    headers = plugin_wheels.tensorrt_headers()
    # little optimised, in half the time: nothing is run, and the test for Orin above optimises fully
    options = [f"-DTENSORRT_ROOT={headers}", "-DCMAKE_CUDA_ARCHITECTURES=75-real;120", "-DCMAKE_CUDA_FLAGS=-Xcicc -O1"]
    log = run("cmake", "-S", str(SOURCES), "-B", str(tmp_path), *options)
    assert f"TensorRT headers in {headers}" in log
    run("cmake", "--build", str(tmp_path), "--parallel", "2")
    library = tmp_path / "libjakiro_plugins.so"
    exported = {line.split()[-1] for line in run("nm", "-D", "--defined-only", str(library)).splitlines()}
    ours = {
        "jakiro_expert_dispatch",
        "jakiro_expert_dispatch_workspace",
        "jakiro_kv_commit",
        "jakiro_group_matmul",
        "getCreators",
        "setLoggerFinder",
    }
    assert ours <= exported
    assert not any(name.startswith("jakiro_shim") for name in exported)
    if shutil.which("cuobjdump") is not None:
        listed = run("cuobjdump", "--list-elf", "--list-ptx", str(library))
        assert {f"sm_{number}" for number in (75, 120)} <= set(re.findall(r"sm_\d+", listed))


def test_cmake_builds_the_same_sources_for_a_cpu(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    run("cmake", "-S", str(SOURCES), "-B", str(tmp_path), "-DJAKIRO_CPU=ON", "-DCMAKE_BUILD_TYPE=Debug")
    run("cmake", "--build", str(tmp_path), "--parallel", "2")
    library = plugin_library.Library(tmp_path / "libjakiro_plugins.so")
    library.check_dispatch(plugin_library.Problem.random("half", 9, 64, 48, 2, 2), seed=1)
