"""A GPU made of host memory, as far as jakiro_runtime uses one: cuda.bindings.runtime's calls, nothing lenient about them.

Work on a stream waits in a queue until somebody waits for the stream, so a result that is read too early is not there. Device
memory begins as garbage. A copy must stay inside one allocation on each side and go the way it says. While a stream is recorded
nothing runs, and calls that CUDA forbids then fail.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

GARBAGE = 0xA5


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class PitchedPtr(NamedTuple):
    ptr: int
    pitch: int
    xsize: int
    ysize: int


class Extent(NamedTuple):
    width: int
    height: int
    depth: int


class cudaMemcpy3DParms:
    srcPtr: PitchedPtr
    dstPtr: PitchedPtr
    extent: Extent
    kind: cudaMemcpyKind


@dataclass
class Block:
    """An allocation. kind: "device" or "pinned"."""

    address: int
    size: int
    kind: str
    buffer: Any


@dataclass
class Traffic:
    """What crossed between host and device. Each copy is (bytes, host address)."""

    up: list[tuple[int, int]] = field(default_factory=list)
    down: list[tuple[int, int]] = field(default_factory=list)
    launches: int = 0
    on_the_device: int = 0  # copies


class FakeCuda:
    """Stands in for the module cuda.bindings.runtime."""

    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaMemcpy3DParms = cudaMemcpy3DParms
    cudaHostAllocDefault = 0
    cudaStreamNonBlocking = 1

    def __init__(self, memory: int = 1 << 30) -> None:
        self.blocks: dict[int, Block] = {}
        self.traffic = Traffic()
        self.queue: list[Callable[[], None]] = []
        self.recorded: list[Callable[[], None]] | None = None
        self.free = memory
        self.recordable = True
        self.mallocs = self.graphs = 0

    # Memory

    def _allocate(self, size: int, kind: str) -> tuple[int, ...]:
        if self.recorded is not None:
            return 900, 0
        if size <= 0:
            return 1, 0
        if kind == "device":
            self.mallocs += 1
            if size > self.free:
                return 2, 0
            self.free -= size
        buffer = (ctypes.c_uint8 * (size + 256))()
        ctypes.memset(buffer, GARBAGE, size + 256)
        address = -(-ctypes.addressof(buffer) // 256) * 256
        self.blocks[address] = Block(address, size, kind, buffer)
        return 0, address

    def cudaMalloc(self, size: int) -> tuple[int, ...]:
        return self._allocate(size, "device")

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[int, ...]:
        return self._allocate(size, "pinned")

    def _release(self, address: int, kind: str) -> tuple[int]:
        assert self.recorded is None, "memory freed while a stream is recorded"
        block = self.blocks[address]
        assert block.kind == kind
        assert not self.queue, "memory freed that waiting work may use"
        del self.blocks[address]
        if kind == "device":
            self.free += block.size
        return (0,)

    def cudaFree(self, address: int) -> tuple[int]:
        return self._release(address, "device")

    def cudaFreeHost(self, address: int) -> tuple[int]:
        return self._release(address, "pinned")

    def block(self, address: int, size: int) -> Block | None:
        """The allocation that holds these bytes; None where they are the program's own. Fails where they cross an end."""
        starts = sorted(self.blocks)
        place = bisect_right(starts, address) - 1
        found = self.blocks[starts[place]] if place >= 0 else None
        if found is None or address >= found.address + found.size:
            return None
        assert address + size <= found.address + found.size, "past the end of an allocation"
        return found

    def on_device(self, address: int, size: int) -> bool:
        found = self.block(address, size)
        return found is not None and found.kind == "device"

    # Work

    def _put(self, work: Callable[[], None]) -> tuple[int]:
        (self.queue if self.recorded is None else self.recorded).append(work)
        return (0,)

    def enqueue(self, work: Callable[[], None]) -> None:
        """Kernels of other libraries come this way."""
        self._put(work)

    def _run(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def _move(self, to: int, source: int, size: int) -> None:
        ways = self.on_device(source, size), self.on_device(to, size)
        if ways == (False, True):
            self.traffic.up.append((size, source))
        elif ways == (True, False):
            self.traffic.down.append((size, to))
        elif ways == (True, True):
            self.traffic.on_the_device += 1
        ctypes.memmove(to, source, size)

    def _pinned(self, address: int, size: int) -> bool:
        found = self.block(address, size)
        return found is not None and found.kind == "pinned"

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: cudaMemcpyKind, stream: int) -> tuple[int]:
        way = {cudaMemcpyKind.cudaMemcpyHostToDevice: (False, True), cudaMemcpyKind.cudaMemcpyDeviceToHost: (True, False)}[kind]
        assert (self.on_device(source, size), self.on_device(to, size)) == way, "a copy that says the wrong way"
        assert self._pinned(source if way[1] else to, size), "asynchronous copies are to and from pinned memory"
        return self._put(lambda: self._move(to, source, size))

    def make_cudaPitchedPtr(self, address: int, pitch: int, xsize: int, ysize: int) -> PitchedPtr:
        return PitchedPtr(address, pitch, xsize, ysize)

    def make_cudaExtent(self, width: int, height: int, depth: int) -> Extent:
        return Extent(width, height, depth)

    def cudaMemcpy3DAsync(self, box: cudaMemcpy3DParms, stream: int) -> tuple[int]:
        assert self.recorded is None, "a copy of pageable memory while a stream is recorded"
        source, to, extent = box.srcPtr, box.dstPtr, box.extent
        assert min(extent) > 0
        for side in (source, to):
            assert side.pitch >= extent.width
            assert side.ysize >= extent.height, "slices overlap"

        def work() -> None:
            for depth in range(extent.depth):
                for row in range(extent.height):
                    at = [side.ptr + (depth * side.ysize + row) * side.pitch for side in (to, source)]
                    self._move(at[0], at[1], extent.width)

        return self._put(work)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[int]:
        assert self.on_device(address, size)
        return self._put(lambda: ctypes.memset(address, value, size) and None)  # type: ignore[func-returns-value]

    # Streams and graphs

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return 0, 0x5EED

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        if self.recorded is not None:
            return (900,)
        self._run()
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: cudaStreamCaptureMode) -> tuple[int]:
        assert mode == cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal, "other threads may allocate meanwhile"
        assert self.recorded is None
        self.recorded = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        work, self.recorded = self.recorded, None
        return (0, work) if self.recordable else (901, None)

    def cudaGetLastError(self) -> tuple[int]:
        return (0,)

    def cudaGraphInstantiate(self, graph: Sequence[Callable[[], None]], flags: int) -> tuple[int, Any]:
        self.graphs += 1
        return 0, tuple(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        return (0,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[int]:
        return (0,)

    def cudaGraphLaunch(self, graph: Sequence[Callable[[], None]], stream: int) -> tuple[int]:
        assert self.recorded is None
        self.traffic.launches += 1
        self.queue.extend(graph)
        return (0,)

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:
        return 0, {2: b"out of memory"}.get(code, b"an error of the fake device")


def view(address: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """The memory at an address as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)
