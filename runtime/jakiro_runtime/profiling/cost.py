"""What one target pass costs, by the rows it processes and the context behind them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jakiro_bench.metrics import summary
from jakiro_runtime.decoding.target_runner import TargetRunner
from jakiro_runtime.engine import Engine

ROWS = (1, 2, 4, 8, 16, 32)
PASTS = (64, 512, 4096)


def cost_by_rows(
    engine: Engine,
    repeats: int = 7,
    rows: Sequence[int] = ROWS,
    pasts: Sequence[int] = PASTS,
    progress: Callable[[int], None] = lambda calls: None,
) -> list[dict[str, Any]]:
    """Time target calls of several sizes behind several contexts, taking turns; contexts that do not fit are left out.

    Returns:
        for each context: past and capacity (slots), bytes_read (of the cache, a call), ms by rows
    """
    table = []
    for past in pasts:
        if past + max(rows) > engine.manifest.model.max_context:
            continue
        call = _call_behind(engine, past, max(rows))
        times: dict[int, list[float]] = {count: [] for count in rows}
        for repeat in range(repeats + 1):
            for count in rows:
                tokens, chain = np.ones((1, count), np.int64), np.tri(count, dtype=bool)[None]
                started = time.perf_counter()
                call.run(tokens, np.arange(count)[None], chain, logits=False)
                if repeat:  # the first one allocates
                    times[count].append(1e3 * (time.perf_counter() - started))
            progress(1)
        table.append(
            {
                "past": past,
                "capacity": call.cache.capacity,
                "bytes_read": call.cache.keys.nbytes + call.cache.values.nbytes,
                "ms": {str(count): summary(values) for count, values in times.items()},
            }
        )
    return table


def long_context(table: Sequence[dict[str, Any]], rows: int, gigabytes_per_second: float) -> dict[str, Any] | None:
    """A verification behind the longest context against the shortest, and what of it reading the cache explains.

    Args:
        table: of `cost_by_rows`
        rows: of a verification; the next larger count that was measured is taken
        gigabytes_per_second: what this machine reads from memory
    """
    if len(table) < 2:
        return None
    counts = [int(count) for count in table[0]["ms"]]
    count = min((number for number in counts if number >= rows), default=max(counts))
    short, long = table[0], table[-1]
    ms = [entry["ms"][str(count)]["median"] for entry in (short, long)]
    moved = long["bytes_read"] - short["bytes_read"]
    return {
        "rows": count,
        "past": [short["past"], long["past"]],
        "capacity": [short["capacity"], long["capacity"]],
        "ms": ms,
        "ratio": round(ms[1] / ms[0], 3),
        "extra_ms": round(ms[1] - ms[0], 3),
        "extra_bytes": moved,
        "machine_gigabytes_per_second": round(gigabytes_per_second, 2),
        "extra_ms_for_the_bytes": round(1e3 * moved / 1e9 / gigabytes_per_second, 3),
    }


def read_speed(threads: int, megabytes: int = 256, repeats: int = 3) -> float:
    """Gigabytes per second that this many threads read from memory, together; the best of a few tries."""
    data = np.ones(megabytes * 1_000_000 // 8)
    parts = np.array_split(data, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, data.nbytes / 1e9 / (time.perf_counter() - started))
    return best


def _call_behind(engine: Engine, past: int, rows: int) -> TargetRunner:
    """A target call whose cache holds noise: memory that was never written would be read from one page of zeros."""
    call = TargetRunner(engine.bundle.target, engine.manifest)
    call.cache.reserve(past + max(2, rows))
    noise = np.random.default_rng(0).standard_normal(call.cache.keys.shape[-2:], dtype=np.float32)
    call.cache.keys[...] = noise
    call.cache.values[...] = noise
    call.cache.lengths[0] = past
    return call
