"""How this machine's GPU is asked for: against a driver of our own that answers as one with a GPU, or without, would."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jakiro_runtime.backends import gpu as device
from jakiro_runtime.errors import EngineError

# Signatures as in the driver API's reference; the attributes of an Orin.
DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int* count) { *count = COUNT; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceGetName(char* name, int length, int device) { strncpy(name, "Orin", length); return device != 7; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 18 ? 1 : -1;
  return device != 7;
}
static int retained, pushed;
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = &retained; return retained++; }
int cuCtxPushCurrent_v2(void* context) { return context != &retained || pushed++; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { *free = 5; *total = 9; return pushed == 1 ? 0 : 201; }
int cuCtxPopCurrent_v2(void** context) { return --pushed; }
int cuDevicePrimaryCtxRelease_v2(int device) { return --retained; }
"""


def driver(folder: Path, init: int = 0, count: int = 1) -> str:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc")
    source, library = folder / "driver.c", folder / f"libcuda-{init}-{count}.so"
    source.write_text(DRIVER)
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-DINIT={init}", f"-DCOUNT={count}", str(source), "-o", str(library)], check=True
    )
    return str(library)


def test_no_driver() -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver.*a machine that has an NVIDIA GPU"):
        device.find("libcuda-of-no-machine.so.1")


@pytest.mark.parametrize(("init", "count", "reason"), [(100, 1, "CUDA error 100"), (0, 0, "CUDA_VISIBLE_DEVICES")])
def test_a_driver_that_shows_no_gpu(tmp_path: Path, init: int, count: int, reason: str) -> None:
    with pytest.raises(EngineError, match=f"shows no GPU.*{reason}"):
        device.find(driver(tmp_path, init, count))


def test_a_gpu_is_described_as_often_as_it_is_asked_for(tmp_path: Path) -> None:
    library = driver(tmp_path)
    for _ in range(2):  # a context that was not given back would show the second time
        assert device.find(library) == device.Device("Orin", 87, 5, 9, True)


def test_every_function_it_calls_is_in_the_driver_api() -> None:
    header = Path("/usr/local/cuda/include/cuda.h")
    if not header.exists():
        pytest.skip(f"needs the CUDA toolkit's {header}")
    called = set(re.findall(r"cuda\.(cu\w+)\(", Path(device.__file__).read_text()))
    assert len(called) >= 8
    assert called <= set(re.findall(r"\bcu\w+", header.read_text(errors="replace")))


@pytest.mark.gpu
def test_the_gpu_of_this_machine() -> None:
    try:
        found = device.find()
    except EngineError as error:
        pytest.skip(str(error))
    assert found.sm >= 75
    assert 0 < found.free <= found.total
