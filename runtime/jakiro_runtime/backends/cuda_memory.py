"""A GPU's memory and the stream that one conversation works on.

Buffers are allocated once. Copies and launches are put on one stream, in order; the host waits only where it reads a result.
What Python no longer needs is freed when nothing on the stream can use it any more, and never while a stream is recorded.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from jakiro_runtime.backends import Buffers, Pair, append_runs
from jakiro_runtime.backends.cuda_driver import Driver
from jakiro_runtime.backends.device_array import DeviceArray
from jakiro_runtime.errors import EngineError


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


ALIGNMENT = 256  # of a tensor's address


class KvCommit(ctypes.Structure):
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
        arguments = KvCommit(
            self._widths.shape[0], batch, self.heads, self.rows, self.capacity, most,
            self._sources.address, self._targets.address, self._widths.address,
            at, at + 8 * batch * most, at + 8 * batch * (most + 1),
        )  # fmt: skip
        code = commit(ctypes.byref(arguments), ctypes.c_void_p(self._memory.stream))
        self._memory.driver.check(code, "The plugin library does not append rows to the cache")


class _Finalizers(threading.local):
    """Frees what Python has collected: at once, or after the recording where this thread is recording a stream.

    CUDA forbids freeing while a stream is recorded and drops the recording then; and a garbage collection may come at any time.
    """

    def __init__(self) -> None:
        self.recording = False
        self._waiting: list[Callable[[], None]] = []

    def run(self, free: Callable[[], None]) -> None:
        if self.recording:
            self._waiting.append(free)
        else:
            free()

    def end_recording(self) -> None:
        self.recording = False
        while self._waiting:
            self._waiting.pop(0)()


_FINALIZERS = _Finalizers()


def _finalize(owner: object, free: Callable[[int], None], handle: int, stream: Stream | None = None) -> None:
    """Call free(handle) when `owner` is collected, after what is on the stream where there is one; not as Python ends."""

    def release() -> None:
        if stream is not None:
            stream.driver.synchronize(stream.handle)
        free(handle)

    weakref.finalize(owner, lambda: _FINALIZERS.run(release)).atexit = False


class Stream:
    """A CUDA stream. Memory that waits for it before it is freed holds it, so that it goes last whatever is collected first."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.handle = driver, driver.create_stream()
        _finalize(self, driver.destroy_stream, self.handle)


class Recording:
    """A CUDA graph: work on a stream that is launched as one."""

    def __init__(self, driver: Driver, graph: int, stream: int) -> None:
        self._driver, self._stream = driver, stream
        self._executable = driver.instantiate(graph)
        _finalize(self, driver.destroy_executable, self._executable)

    def launch(self) -> None:
        self._driver.launch(self._executable, self._stream)


class CudaMemory:
    """As `jakiro_runtime.backends.Memory` asks: `zeros` are `DeviceArray`s, `staging` is pinned host memory.

    plugin: appends rows in one launch; without it, in one strided copy for each run of rows
    longest_cache: as `Memory` says

    stream: the CUDA stream's handle, on which everything happens
    """

    def __init__(self, driver: Driver, plugin: ctypes.CDLL | None = None, longest_cache: int | None = None) -> None:
        self.driver, self.longest_cache = driver, longest_cache
        self._commit = plugin.jakiro_kv_commit if plugin is not None else None
        self._stream = Stream(driver)
        self.stream = self._stream.handle
        self._moves: dict[Any, _Move] = {}
        self._launched: set[_Move] = set()  # since the host last waited
        self._workspaces: list[DeviceArray] = []

    def zeros(self, shape: Sequence[int], dtype: np.dtype) -> DeviceArray:
        array = self.empty(shape, dtype)
        self.driver.fill(array.address, 0, max(1, array.nbytes), self.stream)
        return array

    def layers(self, shape: Sequence[int], dtype: np.dtype) -> DeviceArray:
        """TensorRT demands addresses that are multiples of 256; so does every layer's first element have one."""
        count, *inner = shape
        one = DeviceArray.dense(self, 0, tuple(inner), np.dtype(dtype))
        step = -(-one.nbytes // ALIGNMENT) * ALIGNMENT
        whole = self.zeros((count * step,), np.dtype(np.uint8))
        return DeviceArray(self, whole.address, tuple(shape), one.dtype, (step, *one.strides), whole)

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> DeviceArray:
        """Device memory whose contents are anything."""
        array = DeviceArray.dense(self, 0, tuple(shape), np.dtype(dtype))
        array.address = self.driver.allocate(max(1, array.nbytes))
        _finalize(array, self.driver.free, array.address, self._stream)
        return array

    def upload(self, values: np.ndarray) -> DeviceArray:
        """Device memory with these values."""
        array = self.empty(values.shape, values.dtype)
        array[...] = values
        return array

    def staging(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        address = self.driver.allocate_host(size)
        buffer = (ctypes.c_uint8 * size).from_address(address)
        _finalize(buffer, self.driver.free_host, address, self._stream)
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
        self.driver.copy(to.address, values.ctypes.data, values.nbytes, self.stream)

    def enqueue_download(self, to: np.ndarray, values: DeviceArray) -> None:
        """Copy from the device to `staging`; there once the host has waited."""
        self.driver.copy(to.ctypes.data, values.address, to.nbytes, self.stream)

    def copy_box(
        self, to: int, source: int, extent: tuple[int, int, int], to_pitch: tuple[int, int], source_pitch: tuple[int, int]
    ) -> None:
        """Copy depth x height runs of bytes; as `DeviceMemory` asks."""
        self.driver.copy_box(to, source, extent, to_pitch, source_pitch, self.stream)

    def record(self, work: Callable[[], None]) -> Recording | None:
        """What `work` puts on the stream, as a CUDA graph; nothing of it runs yet. None where it cannot be recorded."""
        self.driver.begin_capture(self.stream)
        _FINALIZERS.recording = True
        refused = False
        try:
            work()
        except EngineError:
            refused = True
        finally:
            graph = self.driver.end_capture(self.stream)
            _FINALIZERS.end_recording()
        if graph is None:
            return None
        try:
            return None if refused else Recording(self.driver, graph, self.stream)
        finally:
            self.driver.destroy_graph(graph)

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        self.driver.synchronize(self.stream)
        self._launched.clear()


def memory_of(inputs: Buffers, outputs: Buffers) -> CudaMemory:
    """The memory that a call's device arrays lie in."""
    arrays = (*inputs.values(), *outputs.values())
    found = [array.memory for array in arrays if isinstance(array, DeviceArray)]
    return cast(CudaMemory, found[0])
