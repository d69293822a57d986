"""libcuda.so.1 as a C library of our own that answers as one with a GPU, or without, would."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jakiro_runtime.backends.cuda_driver import PROTOTYPES

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
int cuDriverGetVersion(int* version) { *version = 12060; return 0; }
static int retained;
static void* current;
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = &retained; return retained++; }
int cuDevicePrimaryCtxRelease_v2(int device) { return --retained; }
int cuCtxSetCurrent(void* context) { current = context; return 0; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { *free = 5 << 20; *total = 9 << 20; return current == &retained ? 0 : 201; }
int cuMemAlloc_v2(unsigned long long* address, size_t size) { *address = 4096; return current != &retained ? 201 : ALLOCATE; }
int cuGetErrorString(int code, const char** text) {
  *text = code == 2 ? "out of memory" : code == 100 ? "no CUDA-capable device is detected" : code == 999 ? "unknown error" : 0;
  return *text ? 0 : 1;
}
"""


def driver(folder: Path, init: int = 0, count: int = 1, allocate: int = 0, lacks: str = "") -> str:
    """The path of a driver library that answers so."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc")
    source, library = folder / "driver.c", folder / f"libcuda-{init}-{count}-{allocate}-{lacks}.so"
    others = "".join(f"int {name}(void) {{ return 1; }}\n" for name in PROTOTYPES if f"int {name}(" not in DRIVER)
    source.write_text(re.sub(rf"int {lacks}\(.*\n", "", DRIVER + others) if lacks else DRIVER + others)
    values = [f"-DINIT={init}", f"-DCOUNT={count}", f"-DALLOCATE={allocate}"]
    subprocess.run([compiler, "-shared", "-fPIC", "-w", *values, str(source), "-o", str(library)], check=True)
    return str(library)
