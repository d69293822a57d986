"""Tier 1: the CUDA kernels on this GPU, against NumPy in double precision, and what they reach of its memory's speed.

Needs the NVIDIA driver, Python and NumPy; and nvcc, or a libjakiro_plugins.so (JAKIRO_PLUGIN).

    python3 tests/gpu/tiers/tier1_kernels.py [--json FILE] [--small]

--small: few and small cases without timing, which is what compute-sanitizer runs.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import tier_harness as harness
from tier_harness import Checklist, Skip

harness.bare_runtime()

import numpy as np  # noqa: E402

import plugin_reference  # noqa: E402
from jakiro_runtime.backends import cuda_driver  # noqa: E402
from jakiro_runtime.backends.cuda_driver import Driver  # noqa: E402
from jakiro_runtime.backends.cuda_memory import CudaMemory, KvCommit, load_plugin  # noqa: E402
from jakiro_runtime.errors import EngineError  # noqa: E402
from plugin_calls import TYPES, Dispatch, GroupMatMul, declare, from_bits, to_bits  # noqa: E402
from tier_plugin import plugin_library  # noqa: E402

POISON = 0xFF  # NaN in every floating type
ROWS = (1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 60, 64, 65, 100, 128)
SIZES = ((64, 48), (200, 136), (50, 34), (576, 576))  # (hidden, inner); 50 and 34 are no multiples of 16 bytes
MIXTURES = ((2, 1), (2, 2), (3, 2), (4, 1), (8, 2), (8, 8))  # (experts, top_k)
SEVERAL = ((2, 2), (4, 1))  # mixtures that are tried with every number of rows, the others with a few
FEW = (9, 64, 128)
LARGE = (10, 4096, 1024)  # rows, hidden, inner: one of a model's size
# What is timed: a Llama-2-7B head's, SmolLM2's, and a mixture of eight
TIMED = (("Llama-2-7B's head", 4096, 4096, 2, 2), ("SmolLM2's head", 576, 576, 2, 2), ("8 experts", 4096, 4096, 8, 2))


class Call:
    """A call of ExpertDispatch with its tensors on the device."""

    def __init__(
        self, memory: CudaMemory, library: Any, kind: str, rows: int, hidden: int, inner: int, experts: int, top_k: int,
        contrast: bool = True, sets: int = 1, seed: int = 0,
    ) -> None:  # fmt: skip
        random = np.random.default_rng([seed, rows, hidden, inner, experts, top_k])

        def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
            return to_bits(random.standard_normal(shape, np.float32) * np.float32(scale), kind)

        self.memory, self.library, self.kind, self.top_k, self.contrast = memory, library, kind, top_k, contrast
        self.host = {
            "x": draw(rows, hidden),
            "router_logits": draw(rows, experts + 2),
            "gate_up": draw(experts, 2 * inner, hidden, scale=hidden**-0.5),
            "down": draw(experts, hidden, inner, scale=inner**-0.5),
        }
        bits = self.host["x"].dtype
        self.outputs = [memory.empty((rows, hidden), bits) for _ in range(2)]
        size = library.jakiro_expert_dispatch_workspace(TYPES[kind], rows, hidden, inner, experts)
        self.workspace = memory.empty((max(1, size),), np.dtype(np.uint8))
        small = [memory.upload(self.host[name]) for name in ("x", "router_logits")]
        # the same values at several addresses: together they are too large for the cache
        weights = [[memory.upload(self.host[name]) for name in ("gate_up", "down")] for _ in range(sets)]
        self._alive = (small, weights)
        self.arguments = [
            Dispatch(
                TYPES[kind], rows, hidden, inner, experts, top_k, int(contrast),
                *(array.address for array in (*small, *pair, *self.outputs, self.workspace)),
            )
            for pair in weights
        ]  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        return sum(self.host[name].nbytes for name in ("gate_up", "down"))

    def poison(self) -> None:
        """Fill what the call writes, so that an element left out is seen."""
        for array in (*self.outputs, self.workspace):
            self.memory.driver.fill(array.address, POISON, array.nbytes, self.memory.stream)

    def launch(self, number: int = 0) -> None:
        arguments = self.arguments[number % len(self.arguments)]
        code = self.library.jakiro_expert_dispatch(ctypes.byref(arguments), self.memory.stream)
        self.memory.driver.check(code, "expert dispatch")

    def compare(self, first: list[np.ndarray] | None = None) -> tuple[float, list[np.ndarray]]:
        """The largest error as a share of what is allowed, and the results' bits. Raises AssertionError above 1."""
        found = [array.copy() for array in self.outputs]
        if first is not None:
            for before, now in zip(first, found, strict=True):
                assert before.tobytes() == now.tobytes(), "the same call gave other bits the second time"
            return 0.0, found
        exact = {name: from_bits(array, self.kind) for name, array in self.host.items()}
        expected, allowed = plugin_reference.dispatch(
            exact["x"], exact["router_logits"], exact["gate_up"], exact["down"], self.top_k, self.contrast,
            plugin_reference.ROUNDING[self.kind],
        )  # fmt: skip
        worst = 0.0
        for name, bits, wanted, tolerance in zip(("primary", "contrast"), found, expected, allowed, strict=True):
            error = np.abs(from_bits(bits, self.kind).astype(np.float64) - wanted)
            share = np.where(error <= tolerance, error / np.maximum(tolerance, 1e-30), np.inf)  # NaN is infinite too
            assert np.isfinite(share).all(), f"{name}: {(~np.isfinite(share)).sum()} of {share.size} values are off"
            worst = max(worst, float(share.max()))
        return worst, found


def cases(small: bool) -> Iterator[tuple[int, int, int, int, int, bool]]:
    """(rows, hidden, inner, experts, top_k, contrast) of every call that is compared."""
    sizes, mixtures = (SIZES[:3], MIXTURES[1:4]) if small else (SIZES, MIXTURES)
    for (hidden, inner), (experts, top_k) in product(sizes, mixtures):
        for rows in (1, 9, 33) if small else ROWS if (experts, top_k) in SEVERAL else FEW:
            yield rows, hidden, inner, experts, top_k, True
        yield 9, hidden, inner, experts, top_k, False
    if not small:
        yield (*LARGE, 2, 2, True)


def check_dispatch(checks: Checklist, memory: CudaMemory, library: Any, small: bool) -> None:
    """Every case run as it is, then recorded as a CUDA graph and replayed: within the bound, and the same bits."""
    for kind in TYPES:
        with checks.check(f"expert dispatch in {kind} is what NumPy computes in double, and again from a CUDA graph") as figures:
            worst, count = 0.0, 0
            for rows, hidden, inner, experts, top_k, contrast in cases(small):
                call = Call(memory, library, kind, rows, hidden, inner, experts, top_k, contrast)
                call.poison()
                call.launch()
                try:
                    share, bits = call.compare()
                    recording = memory.record(call.launch)
                    assert recording is not None, "the launch cannot be recorded"
                    call.poison()
                    recording.launch()
                    call.compare(bits)
                except AssertionError as error:
                    case = f"rows {rows}, hidden {hidden}, inner {inner}, {experts} experts, top {top_k}"
                    raise AssertionError(f"{case}: {error}") from None
                worst, count = max(worst, share), count + 1
            figures["cases"], figures["largest error as a share of the bound"] = count, round(worst, 3)


def check_rows_alone(checks: Checklist, memory: CudaMemory, library: Any) -> None:
    with checks.check("a row's result does not depend on the rows in the same call") as figures:
        for kind in TYPES:
            many = Call(memory, library, kind, 31, 200, 136, 2, 2)
            many.launch()
            together = [array.copy() for array in many.outputs]
            for r in (0, 13, 30):
                one = many.arguments[0]
                single = Dispatch.from_buffer_copy(one)
                single.rows, single.x = 1, one.x + r * 200 * many.host["x"].itemsize
                single.router_logits = one.router_logits + r * 4 * many.host["x"].itemsize
                many.memory.driver.check(library.jakiro_expert_dispatch(ctypes.byref(single), memory.stream), "expert dispatch")
                for array, before in zip(many.outputs, together, strict=True):
                    assert array[0].copy().tobytes() == before[r].tobytes(), f"{kind}, row {r}"
        figures["types"] = len(TYPES)


class Int4Call:
    """A call of GroupMatMul with its tensors on the device."""

    def __init__(
        self, memory: CudaMemory, library: Any, kind: str, rows: int, size_in: int, size_out: int, group: int, sets: int = 1
    ) -> None:
        random = np.random.default_rng([rows, size_in, size_out, group])
        self.memory, self.library, self.kind, self.group = memory, library, kind, group
        self.x = to_bits(random.standard_normal((rows, size_in), np.float32), kind)
        self.codes = random.integers(0, 256, (size_in, size_out // 2), np.uint8)
        self.scales = to_bits(random.uniform(0.02, 0.1, (size_in // group, size_out)).astype(np.float32), kind)
        self.y = memory.empty((rows, size_out), self.x.dtype)
        x, scales = memory.upload(self.x), memory.upload(self.scales)
        weights = [memory.upload(self.codes) for _ in range(sets)]
        self._alive = (x, scales, weights)
        self.arguments = [
            GroupMatMul(TYPES[kind], rows, size_in, size_out, group, x.address, each.address, scales.address, self.y.address)
            for each in weights
        ]

    def launch(self, number: int = 0) -> None:
        arguments = self.arguments[number % len(self.arguments)]
        self.memory.driver.check(self.library.jakiro_group_matmul(ctypes.byref(arguments), self.memory.stream), "int4 matmul")

    def compare(self) -> float:
        """The largest error as a share of what is allowed. Raises AssertionError above 1."""
        steps = np.stack([self.codes & 15, self.codes >> 4], -1).reshape(len(self.codes), -1).astype(np.int8)
        steps = np.where(steps > 7, steps - 16, steps).astype(np.float32)
        products = steps * np.repeat(from_bits(self.scales, self.kind), self.group, 0)
        matrix = from_bits(to_bits(products, self.kind), self.kind).astype(np.float64)  # as DequantizeLinear rounds
        x = from_bits(self.x, self.kind).astype(np.float64)
        exact, found = x @ matrix, from_bits(self.y.copy(), self.kind).astype(np.float64)
        allowed = np.abs(exact) * 2.0 ** (-8 if self.kind == "bfloat16" else -11) + (np.abs(x) @ np.abs(matrix)) * 2.0**-20
        share = np.abs(found - exact) / allowed
        assert (share <= 1).all(), f"{(~(share <= 1)).sum()} of {share.size} values are off"  # NaN too
        return float(share.max())


def check_int4(checks: Checklist, memory: CudaMemory, library: Any, small: bool) -> None:
    sizes = ((256, 136, 32), (1024, 512, 128)) if small else ((256, 136, 32), (320, 72, 64), (1024, 512, 128), (4096, 1024, 128))
    for kind in ("half", "bfloat16"):
        with checks.check(
            f"int4 group matmul in {kind} is what NumPy computes in double, and again from a CUDA graph"
        ) as figures:
            worst, count = 0.0, 0
            for (size_in, size_out, group), rows in product(sizes, (1, 9, 33) if small else (*FEW, 1, 17, 33, 100)):
                call = Int4Call(memory, library, kind, rows, size_in, size_out, group)
                memory.driver.fill(call.y.address, POISON, call.y.nbytes, memory.stream)
                call.launch()
                worst = max(worst, call.compare())
                before = call.y.copy().tobytes()
                recording = memory.record(call.launch)
                assert recording is not None, "the launch cannot be recorded"
                memory.driver.fill(call.y.address, POISON, call.y.nbytes, memory.stream)
                recording.launch()
                assert call.y.copy().tobytes() == before, "the same call gave other bits the second time"
                count += 1
            figures["cases"], figures["largest error as a share of the bound"] = count, round(worst, 3)


def check_int4_speed(checks: Checklist, memory: CudaMemory, library: Any) -> None:
    cache = memory.driver.attribute(cuda_driver.L2_BYTES)
    with checks.check("speed of the int4 group matmul: 4096 x 14336, groups of 128, half") as figures:
        size_in, size_out, table = 4096, 14336, []
        moved = size_in * size_out // 2 + size_in // 128 * size_out * 2
        for rows in (1, 8, 16, 32, 61, 128):
            call = Int4Call(memory, library, "half", rows, size_in, size_out, 128, max(2, -(-4 * cache // moved)))
            call.launch()
            memory.synchronize()
            seconds = timed(memory, call.launch, max(8, len(call.arguments)))
            table.append(f"{rows:3} rows: {seconds * 1e6:8.1f} us, {moved / seconds / 1e9:6.0f} GB/s of weights and scales")
            del call
        figures["table"] = table


def check_commit(checks: Checklist, memory: CudaMemory, library: Any) -> None:
    with checks.check("accepted rows go to every cache's tail, bit for bit") as figures:
        random, cases = np.random.default_rng(0), 0
        for batch, heads, rows, capacity, dims in ((1, 4, 32, 256, (128, 128)), (2, 3, 9, 16, (16, 8)), (3, 2, 61, 300, (5, 64))):
            types = [np.dtype(np.uint16)] * (len(dims) - 1) + [np.dtype(np.uint64)]
            pairs, hosts = [], []
            for dim, dtype in zip(dims, types, strict=True):
                new = random.integers(1, 60000, (2, batch, heads, rows, dim)).astype(dtype)
                cache = random.integers(1, 60000, (2, batch, heads, capacity, dim)).astype(dtype)
                pairs.append((memory.upload(new), memory.upload(cache)))
                hosts.append((new, cache))
            for trial in range(4):
                accepted = [
                    sorted(random.choice(rows, random.integers(0, min(rows, 7)), replace=False).tolist()) for _ in range(batch)
                ]
                firsts = [int(random.integers(0, capacity - 7)) for _ in range(batch)]
                memory.append(pairs, accepted, firsts)
                for (source, target), (new, cache) in zip(pairs, hosts, strict=True):
                    for b in range(batch):
                        for i, row in enumerate(accepted[b]):
                            cache[:, b, :, firsts[b] + i] = new[:, b, :, row]
                    assert target.copy().tobytes() == cache.tobytes(), f"batch {batch}, trial {trial}"
                    assert source.copy().tobytes() == new.tobytes(), "the new rows were written"
                cases += 1
        figures["cases"] = cases


def timed(memory: CudaMemory, launch: Callable[[int], None], launches: int, repeats: int = 9) -> float:
    """Median seconds of one launch: `launches` of them in a CUDA graph, replayed between two events."""
    driver = memory.driver
    recording = memory.record(lambda: [launch(number) for number in range(launches)] and None)  # type: ignore[func-returns-value]
    assert recording is not None
    start, end = driver.create_event(), driver.create_event()
    times = []
    for repeat in range(repeats + 2):
        driver.record_event(start, memory.stream)
        recording.launch()
        driver.record_event(end, memory.stream)
        if repeat >= 2:
            times.append(driver.milliseconds(start, end) / 1e3 / launches)
        else:
            memory.synchronize()
    return median(times)


def copy_speed(memory: CudaMemory) -> float:
    """Bytes a second of a copy on the device, counting those read and those written: about what its memory does at most."""
    size = next(size for size in (1 << 32, 1 << 30, 1 << 27) if 3 * size < memory.driver.memory()[0] or size == 1 << 27)
    a, b = (memory.zeros((size,), np.dtype(np.uint8)) for _ in range(2))
    a[: size // 2] = np.random.default_rng(0).integers(0, 255, size // 2, np.uint8)  # zeros may be copied faster
    return 2 * size / timed(memory, lambda number: memory.driver.copy(b.address, a.address, size, memory.stream), 4)


def check_speed(checks: Checklist, memory: CudaMemory, library: Any) -> None:
    driver = memory.driver
    cache = driver.attribute(cuda_driver.L2_BYTES)
    with checks.check("a copy on the device") as figures:
        roofline = copy_speed(memory)
        checks.facts["copy GB/s"] = figures["GB/s, read and written"] = round(roofline / 1e9, 1)
        figures["L2 MB"] = round(cache / 2**20, 1)
    for title, hidden, inner, experts, top_k in TIMED:
        with checks.check(
            f"speed of expert dispatch: {title}, hidden {hidden}, inner {inner}, {experts} experts, top {top_k}"
        ) as figures:
            table = []
            for kind, rows in [("half", r) for r in (1, 10, 32, 60, 128)] + [("bfloat16", 10), ("float", 10), ("float", 60)]:
                weights = experts * 3 * hidden * inner * (4 if kind == "float" else 2)
                sets = max(2, -(-4 * cache // weights))
                if sets * weights > driver.memory()[0] // 2:
                    table.append(f"{kind:8} {rows:3} rows: too little memory for {sets} sets of weights")
                    continue
                call = Call(memory, library, kind, rows, hidden, inner, experts, top_k, sets=sets)
                call.launch()
                call.memory.synchronize()
                seconds = timed(memory, call.launch, max(sets, 8))
                # an expert that no row chose is not read; the first two always are, for the contrast
                logits = from_bits(call.host["router_logits"], kind)[:, :experts]
                used = set(np.argsort(-logits, axis=1)[:, :top_k].ravel().tolist()) | {0, 1}
                moved = call.weight_bytes * len(used) / experts
                table.append(
                    f"{kind:8} {rows:3} rows: {seconds * 1e6:8.1f} us, {moved / 1e6:6.1f} MB of weights, "
                    f"{moved / seconds / 1e9:6.0f} GB/s, {moved / seconds / roofline:5.1%} of the copy"
                )
                del call
            figures["table"] = table
    with checks.check("speed of the cache commit: Llama-2-7B, 64 tensors of 32 heads of 128 in half") as figures:
        layers, heads, rows, capacity, dim = 32, 32, 61, 2048, 128
        half = np.dtype(np.float16)
        new = [memory.zeros((layers, 1, heads, rows, dim), half) for _ in range(2)]
        caches = [memory.zeros((layers, 1, heads, capacity, dim), half) for _ in range(2)]
        tables = [
            memory.upload(np.array([array[layer].address for array in arrays for layer in range(layers)], np.uint64))
            for arrays in (new, caches)
        ]
        widths = memory.upload(np.full(2 * layers, dim * 2, np.int32))
        table = []
        for count in (1, 3, 5, 7):
            numbers = memory.upload(np.array([*range(0, 2 * count, 2), count, 1000], np.int64))
            at = numbers.address
            commit = KvCommit(
                2 * layers, 1, heads, rows, capacity, count, tables[0].address, tables[1].address, widths.address,
                at, at + 8 * count, at + 8 * (count + 1),
            )  # fmt: skip
            seconds = timed(memory, lambda number, c=commit: library.jakiro_kv_commit(ctypes.byref(c), memory.stream), 20)
            moved = 2 * 2 * layers * heads * count * dim * 2
            table.append(f"{count} rows: {seconds * 1e6:6.2f} us, {moved / 1e6:.2f} MB read and written")
        figures["table"] = table


def check_sanitizer(checks: Checklist, library: Path) -> None:
    """compute-sanitizer over this file's small cases."""
    usual = "/usr/local/cuda/bin/compute-sanitizer"
    sanitizer = shutil.which("compute-sanitizer") or (usual if Path(usual).exists() else None)
    for tool in ("memcheck", "racecheck"):
        with checks.check(f"compute-sanitizer {tool} finds nothing") as figures:
            if sanitizer is None:
                raise Skip("compute-sanitizer is not installed: it comes with CUDA's toolkit (cuda-sanitizer)")
            command = [sanitizer, "--tool", tool, "--error-exitcode", "86", sys.executable, __file__, "--small"]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "JAKIRO_PLUGIN": str(library)}, timeout=240
            )
            said = [line for line in done.stdout.splitlines() if line.startswith("=========")]
            if "Device not supported" in done.stdout:
                raise Skip("compute-sanitizer does not serve this device: Device not supported")
            figures["it says"] = said[-1].strip("= ") if said else done.stdout[-200:]
            assert done.returncode == 0, " | ".join(said[:6]) or (done.stdout + done.stderr)[-500:]


def main() -> int:
    parser = harness.arguments()
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    checks = Checklist("1", "kernels", options.json)
    try:
        driver = Driver()
    except EngineError as error:
        checks.skip(checks.title, str(error))
        return checks.done()
    sm = driver.attribute(cuda_driver.MAJOR) * 10 + driver.attribute(cuda_driver.MINOR)
    checks.facts.update(gpu=driver.name(), sm=sm, multiprocessors=driver.attribute(cuda_driver.MULTIPROCESSORS))
    path, library = None, None
    with checks.check("the plugin library loads") as figures:
        path = plugin_library(sm, figures)
        library = declare(load_plugin(path))
    if path is None or library is None:
        return checks.done()
    memory = CudaMemory(driver, library)
    check_dispatch(checks, memory, library, options.small)
    check_rows_alone(checks, memory, library)
    check_int4(checks, memory, library, options.small)
    check_commit(checks, memory, library)
    if not options.small:
        check_speed(checks, memory, library)
        check_int4_speed(checks, memory, library)
        check_sanitizer(checks, path)
    return checks.done()


if __name__ == "__main__":
    sys.exit(main())
