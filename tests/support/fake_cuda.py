"""A GPU made of host memory, in the place of `jakiro_runtime.backends.cuda_driver.Driver`; nothing lenient about it.

Work on a stream waits in a queue until somebody waits for the stream, so a result that is read too early is not there. Device
memory begins as garbage. A copy must stay inside one allocation on each side. While a stream is recorded nothing runs, and calls
that CUDA forbids then fail.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jakiro_runtime.backends.cuda_driver import describe
from jakiro_runtime.errors import EngineError

GARBAGE = 0xA5


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
    """Stands in for a Driver."""

    version = (12, 6)

    def __init__(self, memory: int = 1 << 30) -> None:
        self.blocks: dict[int, Block] = {}
        self.traffic = Traffic()
        self.queue: list[Callable[[], None]] = []
        self.recorded: list[Callable[[], None]] | None = None
        self.free_bytes = memory
        self._last = 0x5EED
        self.recordable = True
        self.mallocs = self.graphs = 0
        self.streams: set[int] = set()  # those that were not destroyed

    def check(self, code: int, what: str) -> None:
        if code:
            raise EngineError(f"{what}: {describe(code)}.")

    # Memory

    def _allocate(self, size: int, kind: str) -> int:
        self.check(900 if self.recorded is not None else 0, "allocated while a stream is recorded")
        self.check(int(size <= 0), "nothing is allocated")
        if kind == "device":
            self.mallocs += 1
            self.check(2 if size > self.free_bytes else 0, "out of memory")
            self.free_bytes -= size
        buffer = (ctypes.c_uint8 * (size + 256))()
        ctypes.memset(buffer, GARBAGE, size + 256)
        address = -(-ctypes.addressof(buffer) // 256) * 256
        self.blocks[address] = Block(address, size, kind, buffer)
        return address

    def allocate(self, size: int) -> int:
        return self._allocate(size, "device")

    def allocate_host(self, size: int) -> int:
        return self._allocate(size, "pinned")

    def _release(self, address: int, kind: str) -> None:
        assert self.recorded is None, "memory freed while a stream is recorded"
        block = self.blocks[address]
        assert block.kind == kind
        assert not self.queue, "memory freed that waiting work may use"
        del self.blocks[address]
        if kind == "device":
            self.free_bytes += block.size

    def free(self, address: int) -> None:
        self._release(address, "device")

    def free_host(self, address: int) -> None:
        self._release(address, "pinned")

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

    def _put(self, work: Callable[[], None]) -> None:
        (self.queue if self.recorded is None else self.recorded).append(work)

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

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        way = self.on_device(source, size), self.on_device(to, size)
        assert any(way), "a copy on the host"
        assert all(way) or self._pinned(source if way[1] else to, size), "asynchronous copies are to and from pinned memory"
        self._put(lambda: self._move(to, source, size))

    def copy_box(
        self,
        to: int,
        source: int,
        extent: tuple[int, int, int],
        to_pitch: tuple[int, int],
        source_pitch: tuple[int, int],
        stream: int,
    ) -> None:
        assert self.recorded is None, "a copy of pageable memory while a stream is recorded"
        width, height, depth = extent
        assert min(extent) > 0
        for pitch in (to_pitch, source_pitch):
            assert pitch[0] >= width
            assert pitch[1] >= height, "slices overlap"

        def work() -> None:
            for slice in range(depth):
                for run in range(height):
                    self._move(
                        to + (slice * to_pitch[1] + run) * to_pitch[0],
                        source + (slice * source_pitch[1] + run) * source_pitch[0],
                        width,
                    )

        self._put(work)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        assert self.on_device(address, size)
        self._put(lambda: ctypes.memset(address, value, size) and None)  # type: ignore[func-returns-value]

    # Streams and graphs

    def create_stream(self) -> int:
        self._last += 1
        self.streams.add(self._last)
        return self._last

    def destroy_stream(self, stream: int) -> None:
        assert self.recorded is None, "a stream destroyed while one is recorded"
        self.streams.remove(stream)

    def synchronize(self, stream: int) -> None:
        """0: all streams."""
        assert stream == 0 or stream in self.streams, "a stream that was destroyed"
        self.check(900 if self.recorded is not None else 0, "waited while a stream is recorded")
        self._run()

    def begin_capture(self, stream: int) -> None:
        assert self.recorded is None
        self.recorded = []

    def end_capture(self, stream: int) -> Any:
        work, self.recorded = self.recorded, None
        return tuple(work or ()) if self.recordable else None

    def instantiate(self, graph: Any) -> Any:
        self.graphs += 1
        return graph

    def destroy_graph(self, graph: Any) -> None: ...

    def destroy_executable(self, executable: Any) -> None: ...

    def launch(self, executable: Sequence[Callable[[], None]], stream: int) -> None:
        assert self.recorded is None
        self.traffic.launches += 1
        self.queue.extend(executable)


def view(address: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """The memory at an address as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)
