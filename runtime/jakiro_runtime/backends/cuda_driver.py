"""CUDA driver calls through ctypes: memory, streams and graphs from libcuda.so.1, which every machine with a driver has.

No Python package and no CUDA toolkit takes part, so the same runtime serves CUDA 12.6 (JetPack 6) and 13. Handles are those of
the device's primary context, which is the one that TensorRT, ONNX Runtime and the plugin library use as well.
"""

from __future__ import annotations

import ctypes
import glob
import os
import threading
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint8, c_uint64, c_void_p
from typing import Any

from jakiro_runtime.errors import EngineError

LIBRARY = "libcuda.so.1"
# CUdevice_attribute
MAJOR, MINOR, INTEGRATED, L2_BYTES, MULTIPROCESSORS = 75, 76, 18, 38, 16
_THREAD_LOCAL_CAPTURE = 1
_NON_BLOCKING = 1
_UNIFIED = 4  # CU_MEMORYTYPE_UNIFIED: the address says on which side it is

_OUT = POINTER(c_void_p)


class _Copy3D(ctypes.Structure):
    """CUDA_MEMCPY3D_v2 of cuda.h."""

    _fields_ = (
        *((f"src{name}", c_size_t) for name in ("XInBytes", "Y", "Z", "LOD")),
        ("srcMemoryType", c_int), ("srcHost", c_void_p), ("srcDevice", c_uint64), ("srcArray", c_void_p),
        ("reserved0", c_void_p), ("srcPitch", c_size_t), ("srcHeight", c_size_t),
        *((f"dst{name}", c_size_t) for name in ("XInBytes", "Y", "Z", "LOD")),
        ("dstMemoryType", c_int), ("dstHost", c_void_p), ("dstDevice", c_uint64), ("dstArray", c_void_p),
        ("reserved1", c_void_p), ("dstPitch", c_size_t), ("dstHeight", c_size_t),
        ("WidthInBytes", c_size_t), ("Height", c_size_t), ("Depth", c_size_t),
    )  # fmt: skip


# Argument types as in cuda.h; a test compares them with the toolkit's header
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_OUT, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (_OUT, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyAsync": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemcpy3DAsync_v2": (POINTER(_Copy3D), c_void_p),
    "cuMemsetD8Async": (c_uint64, c_uint8, c_size_t, c_void_p),
    "cuStreamCreate": (_OUT, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _OUT),
    "cuGraphInstantiateWithFlags": (_OUT, c_void_p, ctypes.c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuEventCreate": (_OUT, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(ctypes.c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
}

# What to do about an error, by its number. The CUDA runtime, which other libraries use, has the same ones, and 35 besides
_OUT_OF_MEMORY, _OLD_DRIVER, _NO_IMAGE = 2, 35, 209
_REMEDIES = {
    _OUT_OF_MEMORY: "a shorter context, a smaller batch or a smaller model would fit",
    34: "a stub of the driver is loaded: take the toolkit's lib/stubs out of LD_LIBRARY_PATH",
    _OLD_DRIVER: "the driver is older than the CUDA this library was made with: install a newer driver, or the library for "
    "the driver's CUDA",
    46: "another process holds the device for itself (exclusive compute mode); end it, or see nvidia-smi",
    _NO_IMAGE: "the library holds no code for this GPU; build it on this machine",
    222: "the library was built with a newer CUDA than the driver knows; build it on this machine",
    700: "a kernel went past its memory; please report it with the command that you ran",
    802: "the driver is still starting (on a machine with NVSwitch, its fabric manager); wait, or restart it",
    803: "the driver's library and its kernel module are of two versions; restart the machine",
    804: "a compatibility library of CUDA does not serve this GPU; take it out of LD_LIBRARY_PATH",
    999: "restart the machine, or reload the driver's module (nvidia-smi should work)",
}


def describe(code: int, words: str = "") -> str:
    """An error of CUDA as the end of a sentence: its own words, its number, and what to do about it."""
    remedy = f"; {_REMEDIES[code]}" if code in _REMEDIES else ""
    return f"{words or 'it fails'} (CUDA error {code}){remedy}"


class Driver:
    """The calls that the runtime makes, on the first GPU that CUDA shows this process (CUDA_VISIBLE_DEVICES chooses).

    Safe to use from several threads. Every call raises EngineError where CUDA reports an error.
    """

    def __init__(self, library: str = LIBRARY, hint: str = "run this on a machine that has an NVIDIA GPU") -> None:
        """Load the driver and find its GPU; `hint` ends the sentence where there is none.

        Raises:
            EngineError: there is no driver, it shows no GPU, or it is too old
        """
        try:
            self._library = ctypes.CDLL(library)
        except OSError:
            raise EngineError(f"There is no NVIDIA driver on this machine ({library} is missing); {hint}.") from None
        for name, types in PROTOTYPES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError:
                raise EngineError(f"The NVIDIA driver is too old: it has no {name}; install one for CUDA 12 or newer.") from None
            function.argtypes, function.restype = types, c_int
        count, device = c_int(), c_int()
        code = self._library.cuInit(0) or self._library.cuDeviceGetCount(count)
        if code or not count.value:
            reason = describe(code, self._words(code)) if code else "CUDA_VISIBLE_DEVICES may hide it"
            raise EngineError(f"The NVIDIA driver shows no GPU: {_forbidden() or reason}; {hint}.")
        self._call("cuDeviceGet", device, 0)
        self.device = device.value
        self._context: c_void_p | None = None
        self._thread = threading.local()
        self._lock = threading.Lock()

    @property
    def version(self) -> tuple[int, int]:
        """The newest CUDA that this driver serves, such as (12, 6)."""
        value = c_int()
        self._call("cuDriverGetVersion", value)
        return value.value // 1000, value.value % 1000 // 10

    def name(self) -> str:
        """The GPU's name."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self.device)
        return text.value.decode(errors="replace")

    def attribute(self, number: int) -> int:
        """A CUdevice_attribute of the GPU."""
        value = c_int()
        self._call("cuDeviceGetAttribute", value, number, self.device)
        return value.value

    def use(self) -> None:
        """Make the GPU's primary context the calling thread's. Every call below does it where the thread is new."""
        if getattr(self._thread, "ready", False):
            return
        with self._lock:
            if self._context is None:
                context = c_void_p()
                self._call("cuDevicePrimaryCtxRetain", context, self.device)
                self._context = context
        self._call("cuCtxSetCurrent", self._context)
        self._thread.ready = True

    def release(self) -> None:
        """Give the context back, which `use` took; for a caller that only asked for figures."""
        if self._context is not None:
            self._call("cuCtxSetCurrent", None)
            self._call("cuDevicePrimaryCtxRelease_v2", self.device)
            self._context, self._thread = None, threading.local()

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the GPU's memory."""
        self.use()
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", free, total)
        return free.value, total.value

    # Memory

    def allocate(self, size: int) -> int:
        """Device memory; its address, aligned to 256 bytes."""
        self.use()
        address = c_uint64()
        code = self._library.cuMemAlloc_v2(address, size)
        if code == _OUT_OF_MEMORY:
            free, total = self.memory()
            raise EngineError(
                f"The GPU is out of memory: {_mib(size)} more were asked for, and {_mib(free)} of {_mib(total)} are free "
                f"(CUDA error {code}); {_REMEDIES[code]}."
            )
        self._check(code)
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", address)

    def allocate_host(self, size: int) -> int:
        """Pinned host memory; its address."""
        self.use()
        address = c_void_p()
        self._call("cuMemHostAlloc", address, size, 0)
        return int(address.value or 0)

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Set bytes of the device, in the stream's order."""
        self.use()
        self._call("cuMemsetD8Async", address, value, size, stream)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy bytes between any two places, in the stream's order."""
        self.use()
        self._call("cuMemcpyAsync", to, source, size, stream)

    def copy_box(
        self,
        to: int,
        source: int,
        extent: tuple[int, int, int],
        to_pitch: tuple[int, int],
        source_pitch: tuple[int, int],
        stream: int,
    ) -> None:
        """Copy depth x height runs of bytes between any two places.

        Args:
            extent: (width in bytes, height, depth)
            to_pitch, source_pitch: (bytes from one run to the next, runs from one slice to the next)
        """
        self.use()
        box = _Copy3D(
            srcMemoryType=_UNIFIED, srcDevice=source, srcPitch=source_pitch[0], srcHeight=source_pitch[1],
            dstMemoryType=_UNIFIED, dstDevice=to, dstPitch=to_pitch[0], dstHeight=to_pitch[1],
            WidthInBytes=extent[0], Height=extent[1], Depth=extent[2],
        )  # fmt: skip
        self._call("cuMemcpy3DAsync_v2", box, stream)

    # Streams, graphs, events: handles are numbers

    def create_stream(self) -> int:
        self.use()
        return self._made("cuStreamCreate", _NON_BLOCKING)

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: int) -> None:
        """Wait until everything on the stream is done."""
        self.use()
        self._call("cuStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        """Record what this thread puts on the stream instead of doing it; other threads may go on allocating."""
        self.use()
        self._call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL_CAPTURE)

    def end_capture(self, stream: int) -> int | None:
        """The graph that was recorded; None where something that cannot be recorded was tried."""
        graph = c_void_p()
        code = self._library.cuStreamEndCapture(stream, graph)
        return int(graph.value) if code == 0 and graph.value else None

    def instantiate(self, graph: int) -> int:
        """An executable graph."""
        return self._made("cuGraphInstantiateWithFlags", graph, 0)

    def launch(self, executable: int, stream: int) -> None:
        self.use()
        self._call("cuGraphLaunch", executable, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphDestroy", graph)

    def destroy_executable(self, executable: int) -> None:
        self._call("cuGraphExecDestroy", executable)

    def create_event(self) -> int:
        self.use()
        return self._made("cuEventCreate", 0)

    def record_event(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def milliseconds(self, start: int, end: int) -> float:
        """Between two events, once both have happened."""
        value = ctypes.c_float()
        self._call("cuEventSynchronize", end)
        self._call("cuEventElapsedTime", value, start, end)
        return value.value

    def check(self, code: int, what: str) -> None:
        """For a code that another library returned. Raises EngineError: "<what>: ..."."""
        if code:
            raise EngineError(f"{what}: {describe(code, self._words(code))}.")

    def _made(self, name: str, *arguments: Any) -> int:
        handle = c_void_p()
        self._call(name, handle, *arguments)
        return int(handle.value or 0)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            self._check(code)

    def _check(self, code: int) -> None:
        self.check(code, "The GPU reports an error")

    def _words(self, code: int) -> str:
        text = c_char_p()
        known = self._library.cuGetErrorString(code, text) == 0 and text.value
        return text.value.decode() if known and text.value else ""


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size:,} bytes"


def _forbidden() -> str | None:
    """Why the device's files cannot be opened by this user, as a reason; None where that is not it."""
    files = [file for pattern in ("/dev/nvidia[0-9]*", "/dev/nvmap", "/dev/nvhost-gpu") for file in glob.glob(pattern)]
    locked = [file for file in files if not os.access(file, os.R_OK | os.W_OK)]
    if locked:
        return f"this user may not open {locked[0]}; sudo usermod -aG video,render $USER and log in again"
    if not files and os.path.exists("/.dockerenv"):
        return "this container was given none; start it with --gpus all, on a Jetson with --runtime nvidia"
    return None
