"""Tier 1b: the runtime's own use of the GPU's memory: copies, pinned staging, recording, freeing, running out of it.

Needs what tier 1 needs; without the plugin library only its comparison with the kernel is skipped.

    python3 tests/gpu/tiers/tier1b_memory.py [--json FILE]
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from statistics import median
from typing import Any

import tier_harness as harness
from tier_harness import Checklist, Skip

harness.bare_runtime()

import numpy as np  # noqa: E402

from jakiro_runtime.backends import append_runs, cuda_driver  # noqa: E402
from jakiro_runtime.backends.cuda_driver import Driver  # noqa: E402
from jakiro_runtime.backends.cuda_memory import CudaMemory, load_plugin  # noqa: E402
from jakiro_runtime.errors import EngineError  # noqa: E402
from plugin_calls import declare  # noqa: E402
from tier_plugin import plugin_library  # noqa: E402


def check_views(checks: Checklist, memory: CudaMemory) -> None:
    with checks.check("views of device memory are read and written as NumPy's") as figures:
        random = np.random.default_rng(0)
        places: list[Any] = [
            ..., 0, -1, slice(1, 3), (0, slice(None), 1), (..., slice(2, 4), slice(None)), (..., 3), (1, ..., slice(0, 2)),
            (slice(0, 2), 1, ..., slice(1, 4), slice(2, 5)),
        ]  # fmt: skip
        for dtype in (np.float16, np.float32, np.int64, np.bool_, np.uint8):
            host = random.integers(0, 100, (3, 2, 4, 5, 6)).astype(dtype)
            for place in places:
                device = memory.upload(host)
                assert np.array_equal(device[place].copy(), host[place]), f"read {place}"
                new = random.integers(0, 100, host[place].shape).astype(dtype)
                changed = host.copy()
                changed[place] = new
                device[place] = new
                assert np.array_equal(device.copy(), changed), f"written from the host {place}"
                other = memory.upload(host)
                other[place] = device[place]
                assert np.array_equal(other.copy(), changed), f"written from the device {place}"
        assert not memory.zeros((1000, 3), np.dtype(np.float32)).copy().any()
        figures["views"] = len(places) * 5


def check_staging(checks: Checklist, memory: CudaMemory) -> None:
    with checks.check("pinned staging goes up and down") as figures:
        for size in (1, 8, 1000, 1 << 20):
            up, down = (memory.staging((size,), np.dtype(np.int64)) for _ in range(2))
            assert not up.any()
            up[:] = np.arange(size) * 7 + 1
            device = memory.zeros((size,), up.dtype)
            memory.enqueue_upload(device, up)
            memory.enqueue_download(down, device)
            memory.synchronize()
            assert np.array_equal(up, down)
        for way, size in (("up", 1 << 28), ("down", 1 << 28)):
            host, device = memory.staging((size,), np.dtype(np.uint8)), memory.zeros((size,), np.dtype(np.uint8))
            memory.synchronize()
            times = []
            for _ in range(5):
                start = time.perf_counter()
                memory.enqueue_upload(device, host) if way == "up" else memory.enqueue_download(host, device)
                memory.synchronize()
                times.append(time.perf_counter() - start)
            figures[f"{way} GB/s"] = round(size / median(times) / 1e9, 1)


def check_recording(checks: Checklist, memory: CudaMemory) -> None:
    with checks.check("recorded work is done again with the values of that moment") as figures:
        up, down = (memory.staging((1000,), np.dtype(np.int64)) for _ in range(2))
        a, b = (memory.zeros((1000,), up.dtype) for _ in range(2))

        def work() -> None:
            memory.enqueue_upload(a, up)
            memory.driver.copy(b.address, a.address, a.nbytes, memory.stream)
            memory.enqueue_download(down, b)

        recording = memory.record(work)
        assert recording is not None
        for number in range(5):
            up[:] = np.arange(1000) + number
            recording.launch()
            memory.synchronize()
            assert np.array_equal(up, down), f"launch {number}"
        times = []
        for _ in range(200):
            start = time.perf_counter()
            recording.launch()
            memory.synchronize()
            times.append(time.perf_counter() - start)
        figures["us to launch three small copies and wait"] = round(1e6 * median(times), 1)
    with checks.check("what cannot be recorded is told so, and the stream goes on"):
        assert memory.record(memory.synchronize) is None
        assert np.array_equal(memory.upload(np.arange(5)).copy(), np.arange(5))
    with checks.check("a garbage collection while recording frees nothing before its end"):
        values = memory.upload(np.arange(1 << 20))
        target = memory.zeros(values.shape, values.dtype)
        memory.synchronize()

        class Cycle:
            def __init__(self) -> None:
                self.itself, self.array, self.host = self, memory.upload(np.arange(9)), memory.staging((9,), np.dtype(np.int64))

        def collecting() -> None:
            memory.driver.copy(target.address, values.address, values.nbytes, memory.stream)
            gc.collect()

        gc.disable()
        try:
            Cycle()
            recording = memory.record(collecting)
        finally:
            gc.enable()
        assert recording is not None, "the recording was lost"
        recording.launch()
        assert np.array_equal(target.copy(), values.copy())


def check_exhaustion(checks: Checklist, memory: CudaMemory) -> None:
    with checks.check("too little memory is one sentence, and what was there stays usable") as figures:
        kept = memory.upload(np.arange(1000))
        try:
            memory.zeros((1 << 44,), np.dtype(np.uint8))
        except EngineError as error:
            figures["sentence"] = str(error)
            assert "out of memory" in str(error)
            assert "\n" not in str(error)
        else:
            raise AssertionError("16 TiB were given")
        assert np.array_equal(kept.copy(), np.arange(1000))
    with checks.check("freed memory is given again"):
        free, _ = memory.driver.memory()
        for _ in range(20):
            memory.zeros((free // 4,), np.dtype(np.uint8))
        memory.synchronize()
        now, _ = memory.driver.memory()
        assert now > 0.9 * free, f"{free} bytes were free, now {now}"


def check_threads(checks: Checklist, driver: Driver) -> None:
    with checks.check("conversations on several threads do not disturb each other"):
        failures: list[BaseException] = []

        def converse(seed: int) -> None:
            try:
                memory, random = CudaMemory(driver), np.random.default_rng(seed)
                for _ in range(30):
                    values = random.integers(0, 1000, 5000)
                    device = memory.upload(values)
                    other = memory.zeros(values.shape, values.dtype)

                    def work(memory: CudaMemory = memory, other: Any = other, device: Any = device) -> None:
                        memory.driver.copy(other.address, device.address, device.nbytes, memory.stream)

                    recording = memory.record(work)
                    assert recording is not None
                    recording.launch()
                    assert np.array_equal(other.copy(), values)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=converse, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


def check_append(checks: Checklist, driver: Driver, library: Any) -> None:
    with checks.check("appending a round's rows: by the kernel and by strided copies, the same bytes") as figures:
        if library is None:
            raise Skip("no plugin library: see tier 1")
        random, found = np.random.default_rng(0), []
        new = [random.integers(0, 60000, (32, 1, 8, 61, 128)).astype(np.uint16) for _ in range(2)]
        for name, plugin in (("kernel", library), ("copies", None)):
            memory = CudaMemory(driver, plugin)
            pairs = [(memory.upload(each), memory.zeros((32, 1, 8, 1024, 128), np.dtype(np.uint16))) for each in new]
            rows, times = [[0, 3, 4, 11, 30]], []
            for number in range(30):
                start = time.perf_counter()
                memory.append(pairs, rows, [number * 5])
                memory.synchronize()
                times.append(time.perf_counter() - start)
            figures[f"us by {name}"] = round(1e6 * median(times), 1)
            found.append([target.copy() for _, target in pairs])
        expected = [np.zeros((32, 1, 8, 1024, 128), np.uint16) for _ in new]
        for number in range(30):
            append_runs(list(zip(new, expected, strict=True)), [[0, 3, 4, 11, 30]], [number * 5])
        for values in found:
            for wanted, got in zip(expected, values, strict=True):
                assert np.array_equal(wanted, got)


def main() -> int:
    options = harness.arguments().parse_args()
    checks = Checklist("1b", "memory", options.json)
    try:
        driver = Driver()
    except EngineError as error:
        checks.skip(checks.title, str(error))
        return checks.done()
    sm = driver.attribute(cuda_driver.MAJOR) * 10 + driver.attribute(cuda_driver.MINOR)
    free, total = driver.memory()
    checks.facts.update(gpu=driver.name(), driver_cuda=".".join(map(str, driver.version)), free=free, total=total)
    memory = CudaMemory(driver)
    check_views(checks, memory)
    check_staging(checks, memory)
    check_recording(checks, memory)
    check_exhaustion(checks, memory)
    check_threads(checks, driver)
    library = None
    with checks.check("the plugin library loads") as figures:
        library = declare(load_plugin(plugin_library(sm, figures)))
    check_append(checks, driver, library)
    return checks.done()


if __name__ == "__main__":
    sys.exit(main())
