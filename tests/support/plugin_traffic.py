"""Prints what the kernels move: python tests/support/plugin_traffic.py

Counted by the CPU build while it runs the CUDA sources: bytes read and written, 32-byte sectors touched against the fewest
possible, passes through shared memory against the fewest possible. Then the same counts for a real head, by arithmetic, with
the time that the memory of two GPUs would need for them. No GPU takes part: these are bounds, not measurements.
"""

from __future__ import annotations

import os
import shutil

import numpy as np

import plugin_library
from plugin_library import Library, Problem, aligned

BANDWIDTH = {"A100 40 GB": 1555e9, "Orin AGX": 204.8e9}  # bytes a second, from the data sheets


def measure(library: Library, problem: Problem) -> dict:
    """The counters of one call."""
    library.dispatch(problem, detailed=True)
    return library.counters()


def report(library: Library, rows: int, size: int, experts: int) -> None:
    counters = measure(library, Problem.random("half", rows, size, size, experts, 2))
    print(f"\n{experts} experts, top 2, hidden = inner = {size}, half, {rows} rows: {counters['launches']} launches")
    show(counters)


def commit(library: Library, tensors: int, heads: int, accepted: tuple[int, ...]) -> None:
    """The accepted rows of `tensors` caches, head size 128 in half, to their tails."""
    new_rows = [aligned(np.ones((1, heads, 16, 128), np.float16)) for _ in range(tensors)]
    cache = [aligned(np.zeros((1, heads, 256, 128), np.float16)) for _ in range(tensors)]
    rows, counts, past = np.array([accepted], np.int64), np.array([len(accepted)], np.int64), np.array([100], np.int64)
    library.kv_commit(new_rows, cache, rows, counts, past, detailed=True)
    counters = library.counters()
    tensors_only = [buffer for name, buffer in counters["buffers"].items() if not name.startswith("table")]
    moved = {way: sum(buffer[way] for buffer in tensors_only) for way in ("read", "written")}
    print(f"\nCommit of {len(accepted)} rows to {tensors} tensors of {heads} heads: {counters['launches']} launch, {moved}")
    show({**counters, "buffers": {}})


def show(counters: dict) -> None:
    """The counters as lines."""
    for name, buffer in counters["buffers"].items():
        print(f"  {name:14} {buffer['bytes']:9} bytes   read {buffer['read']:9}   written {buffer['written']:9}")
    for memory, unit in (("global", "sectors"), ("shared", "passes")):
        for site, cost in counters[memory].items():
            print(
                f"  {memory} {site:18} {cost['instructions']:8} warp instructions   "
                f"{cost['units']:8} {unit}, fewest {cost['fewest']}"
            )


def bound(rows: int, hidden: int, inner: int) -> None:
    """The two-expert call on a real head: the weights once, and little else."""
    weights = 2 * (2 * inner * hidden + hidden * inner) * 2
    others = 2 * (rows * hidden + 2 * 2 * rows * inner + 2 * rows * hidden)  # x, h written and read, outputs
    times = "   ".join(f"{gpu} {(weights + others) / rate * 1e3:.3f} ms" for gpu, rate in BANDWIDTH.items())
    print(f"  hidden {hidden}, inner {inner}, {rows:3} rows: {weights / 1e6:.1f} MB weights + {others / 1e6:.2f} MB   {times}")


def main() -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        print("The kernels' traffic is counted with a C++ compiler, which is not installed: g++, or another named in CXX.")
        return
    library = Library(plugin_library.build())
    print("ExpertDispatch, counted on the CPU (not run on a GPU)")
    report(library, rows=10, size=256, experts=2)
    report(library, rows=10, size=256, experts=8)
    commit(library, tensors=8, heads=4, accepted=(0, 2, 3, 7, 12))
    print("\nTwo experts, half: bytes through DRAM, and the minimum time they take")
    for rows in (1, 10, 60, 128):
        bound(rows, 4096, 4096)


if __name__ == "__main__":
    main()
