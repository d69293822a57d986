"""A GPU's memory and the stream that one conversation works on, through cuda-bindings. Not run on a GPU.

Buffers are allocated once. Copies and launches are put on one stream, in order; the host waits only where it reads a result.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from jakiro_runtime.backends import Buffers, Pair, append_runs
from jakiro_runtime.backends.device_array import DeviceArray
from jakiro_runtime.errors import EngineError

_INSTALL = "install it with: pip install cuda-bindings"


def load_runtime() -> Any:
    """The CUDA runtime's Python bindings.

    Raises:
        EngineError: they are not installed, or there is no GPU
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(f"Running on a GPU needs cuda-bindings, which does not load here ({error}); {_INSTALL}.") from error
    try:
        code, count = runtime.cudaGetDeviceCount()
    except RuntimeError as error:  # what the bindings make of a driver that lacks a function
        raise EngineError(f"The CUDA driver of this machine does not serve cuda-bindings: {error}.") from error
    if int(code) or not count:
        reason = f"CUDA error {int(code)}" if int(code) else "CUDA_VISIBLE_DEVICES may hide it"
        raise EngineError(f"CUDA shows no GPU on this machine ({reason}); run on one that has, or with --backend onnxruntime.")
    return runtime


def load_plugin(path: Path) -> ctypes.CDLL:
    """Load libjakiro_plugins.so. Raises EngineError where that fails."""
    if not path.is_file():
        raise EngineError(f"There is no plugin library at {path}; build it as plugins/README.md says.")
    try:
        library = ctypes.CDLL(str(path))
        library.jakiro_kv_commit.restype = ctypes.c_int
    except (OSError, AttributeError) as error:
        raise EngineError(f"The plugin library {path} does not load ({error}); build it on this machine.") from error
    return library


class _KvCommit(ctypes.Structure):
    """JakiroKvCommit of plugins/include/jakiro_plugins.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("tensors", "batch", "heads", "rows", "capacity", "most_accepted")),
        *((name, ctypes.c_void_p) for name in ("new_rows", "cache", "row_bytes", "accepted", "counts", "past_length")),
    )


class _Move:
    """A launch of the commit kernel between fixed arrays: its tables are filled once, only row numbers travel."""

    def __init__(self, memory: CudaMemory, pairs: Sequence[tuple[DeviceArray, DeviceArray]]) -> None:
        layers, self.batch, self.heads, self.rows = pairs[0][0].shape[:4]
        self.capacity = pairs[0][1].shape[3]

        def addresses(arrays: Sequence[DeviceArray]) -> DeviceArray:
            return memory.upload(np.array([array[layer].address for array in arrays for layer in range(layers)], np.uint64))

        self._sources, self._targets = addresses([pair[0] for pair in pairs]), addresses([pair[1] for pair in pairs])
        widths = [source.shape[4] * source.dtype.itemsize for source, _ in pairs for _ in range(layers)]
        self._widths = memory.upload(np.array(widths, np.int32))
        self._host = memory.staging((self.batch * (self.rows + 2),), np.dtype(np.int64))
        self._device = memory.zeros(self._host.shape, self._host.dtype)
        self._memory = memory

    def launch(self, commit: Any, rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> None:
        batch, most = self.batch, max(map(len, rows))
        picked = self._host[: batch * most].reshape(batch, most)
        for number, kept in enumerate(rows):
            picked[number, : len(kept)] = kept
        used = batch * (most + 2)
        self._host[batch * most : used] = [*map(len, rows), *firsts]
        self._memory.enqueue_upload(self._device[:used], self._host[:used])
        at = self._device.address
        arguments = _KvCommit(
            self._widths.shape[0], batch, self.heads, self.rows, self.capacity, most,
            self._sources.address, self._targets.address, self._widths.address,
            at, at + 8 * batch * most, at + 8 * batch * (most + 1),
        )  # fmt: skip
        code = commit(ctypes.byref(arguments), ctypes.c_void_p(self._memory.stream))
        if code:
            raise EngineError(f"The GPU refuses to append rows to the cache (CUDA error {code}).")


class Recording:
    """A CUDA graph: work on a stream that is launched as one."""

    def __init__(self, runtime: Any, graph: Any, stream: int) -> None:
        self._runtime, self._stream = runtime, stream
        self._executable = _check(runtime, runtime.cudaGraphInstantiate(graph, 0))
        weakref.finalize(self, runtime.cudaGraphExecDestroy, self._executable).atexit = False

    def launch(self) -> None:
        _check(self._runtime, self._runtime.cudaGraphLaunch(self._executable, self._stream))


class CudaMemory:
    """As `jakiro_runtime.backends.Memory` asks: `zeros` are `DeviceArray`s, `staging` is pinned host memory.

    plugin: appends rows in one launch; without it, in one strided copy for each run of rows

    stream: the CUDA stream's handle, on which everything happens
    """

    def __init__(self, runtime: Any, plugin: ctypes.CDLL | None = None) -> None:
        self._runtime = runtime
        self._commit = plugin.jakiro_kv_commit if plugin is not None else None
        handle = _check(runtime, runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self.stream = int(handle)
        weakref.finalize(self, runtime.cudaStreamDestroy, handle).atexit = False
        self._moves: dict[Any, _Move] = {}
        self._launched: set[_Move] = set()  # since the host last waited
        self._workspaces: list[DeviceArray] = []

    def zeros(self, shape: Sequence[int], dtype: np.dtype) -> DeviceArray:
        array = self.empty(shape, dtype)
        _check(self._runtime, self._runtime.cudaMemsetAsync(array.address, 0, max(1, array.nbytes), self.stream))
        return array

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> DeviceArray:
        """Device memory whose contents are anything."""
        array = DeviceArray.dense(self, 0, tuple(shape), np.dtype(dtype))
        array.address = _check(self._runtime, self._runtime.cudaMalloc(max(1, array.nbytes)))
        weakref.finalize(array, _give_back, self._runtime.cudaFree, self._runtime, self.stream, array.address).atexit = False
        return array

    def upload(self, values: np.ndarray) -> DeviceArray:
        """Device memory with these values."""
        array = self.empty(values.shape, values.dtype)
        array[...] = values
        return array

    def staging(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        address = int(_check(self._runtime, self._runtime.cudaHostAlloc(size, self._runtime.cudaHostAllocDefault)))
        buffer = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(buffer, _give_back, self._runtime.cudaFreeHost, self._runtime, self.stream, address).atexit = False
        array = np.ctypeslib.as_array(buffer)
        array[:] = 0
        return array[: int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def workspace(self, size: int) -> int:
        """The address of device memory that calls on this stream share for temporary values. Aligned to 256 bytes.

        Where it grows, the smaller one stays: recorded work goes on to use it.
        """
        if not self._workspaces or self._workspaces[-1].nbytes < size:
            self._workspaces.append(self.empty((size,), np.dtype(np.uint8)))
        return self._workspaces[-1].address

    def append(self, pairs: Sequence[Pair], rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> None:
        if self._commit is None:
            append_runs(pairs, rows, firsts)
        elif any(rows):
            arrays = cast("Sequence[tuple[DeviceArray, DeviceArray]]", pairs)
            key = tuple((array.address, array.shape, array.dtype) for pair in arrays for array in pair)
            if key not in self._moves:
                if len(self._moves) >= 32:
                    self.synchronize()
                    self._moves.clear()
                self._moves[key] = _Move(self, arrays)
            move = self._moves[key]
            if move in self._launched:  # its row numbers may still be on their way
                self.synchronize()
            self._launched.add(move)
            move.launch(self._commit, rows, firsts)

    def enqueue_upload(self, to: DeviceArray, values: np.ndarray) -> None:
        """Copy from `staging` to the device. The values must not change before the host has waited."""
        self._copy_bytes(to.address, values.ctypes.data, values.nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def enqueue_download(self, to: np.ndarray, values: DeviceArray) -> None:
        """Copy from the device to `staging`; there once the host has waited."""
        self._copy_bytes(to.ctypes.data, values.address, to.nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def _copy_bytes(self, to: int, source: int, size: int, kind: Any) -> None:
        _check(self._runtime, self._runtime.cudaMemcpyAsync(to, source, size, kind, self.stream))

    def copy_box(
        self, to: int, source: int, extent: tuple[int, int, int], to_pitch: tuple[int, int], source_pitch: tuple[int, int]
    ) -> None:
        """Copy depth x height runs of bytes; as `DeviceMemory` asks."""
        runtime = self._runtime
        box = runtime.cudaMemcpy3DParms()
        box.srcPtr = runtime.make_cudaPitchedPtr(source, source_pitch[0], extent[0], source_pitch[1])
        box.dstPtr = runtime.make_cudaPitchedPtr(to, to_pitch[0], extent[0], to_pitch[1])
        box.extent = runtime.make_cudaExtent(*extent)
        box.kind = runtime.cudaMemcpyKind.cudaMemcpyDefault  # unified addresses say which side each is on
        _check(runtime, runtime.cudaMemcpy3DAsync(box, self.stream))

    def record(self, work: Callable[[], None]) -> Recording | None:
        """What `work` puts on the stream, as a CUDA graph; nothing of it runs yet. None where it cannot be recorded."""
        runtime = self._runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _check(runtime, runtime.cudaStreamBeginCapture(self.stream, mode))
        refused = False
        try:
            work()
        except EngineError:
            refused = True
        finally:
            code, graph = runtime.cudaStreamEndCapture(self.stream)
        if refused or int(code):
            runtime.cudaGetLastError()  # of the attempt, which is not to be found by the next call
            return None
        try:
            return Recording(runtime, graph, self.stream)
        finally:
            runtime.cudaGraphDestroy(graph)

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        _check(self._runtime, self._runtime.cudaStreamSynchronize(self.stream))
        self._launched.clear()


def memory_of(inputs: Buffers, outputs: Buffers) -> CudaMemory:
    """The memory that a call's device arrays lie in."""
    arrays = (*inputs.values(), *outputs.values())
    found = [array.memory for array in arrays if isinstance(array, DeviceArray)]
    return cast(CudaMemory, found[0])


def _give_back(free: Any, runtime: Any, stream: int, address: int) -> None:
    """Free memory that work on the stream may still use."""
    runtime.cudaStreamSynchronize(stream)
    free(address)


def _check(runtime: Any, answer: tuple[Any, ...]) -> Any:
    """The value of a call. Raises EngineError in CUDA's words where it failed."""
    code, *values = answer
    if int(code):
        _, text = runtime.cudaGetErrorString(code)
        words = text.decode() if isinstance(text, bytes) else str(text)
        remedy = "; a shorter context, a smaller batch or a smaller model would fit" if "memory" in words else ""
        raise EngineError(f"The GPU reports: {words} (CUDA error {int(code)}){remedy}.")
    return values[0] if values else None
