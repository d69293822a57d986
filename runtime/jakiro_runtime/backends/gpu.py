"""The GPU of this machine, asked of the driver itself: no Python package has to be installed for it. Not run on a GPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from jakiro_runtime.errors import EngineError

# CUdevice_attribute, from the driver API's reference
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18


@dataclass(frozen=True)
class Device:
    """A GPU. sm: its compute capability as a number, such as 87; free, total: bytes; shared: it uses the host's memory."""

    name: str
    sm: int
    free: int
    total: int
    shared: bool


def find(library: str = "libcuda.so.1", hint: str = "run this on a machine that has an NVIDIA GPU") -> Device:
    """The first GPU that CUDA shows this process. `hint` ends the sentence where there is none.

    Raises:
        EngineError: there is no driver, or no GPU
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        raise EngineError(f"There is no NVIDIA driver on this machine ({library} is missing); {hint}.") from None
    code = cuda.cuInit(0)
    count = ctypes.c_int()
    if code == 0:
        code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code != 0 or count.value == 0:
        reason = f"CUDA error {code}" if code else "CUDA_VISIBLE_DEVICES may hide it"
        raise EngineError(f"The NVIDIA driver shows no GPU ({reason}); {hint}.")
    handle, name, context = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call(cuda.cuDeviceGet(ctypes.byref(handle), 0))
    _call(cuda.cuDeviceGetName(name, len(name), handle))
    _call(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
    try:
        _call(cuda.cuCtxPushCurrent_v2(context))
        _call(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
        _call(cuda.cuCtxPopCurrent_v2(ctypes.byref(context)))
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(handle)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        _call(cuda.cuDeviceGetAttribute(ctypes.byref(value), number, handle))
        return value.value

    sm = attribute(_MAJOR) * 10 + attribute(_MINOR)
    return Device(name.value.decode(), sm, free.value, total.value, bool(attribute(_INTEGRATED)))


def _call(code: int) -> None:
    if code != 0:
        raise EngineError(f"The NVIDIA driver answers with CUDA error {code}; does nvidia-smi work here?")
