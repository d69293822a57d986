"""Cost of a target pass by the rows it processes and the context before them; the machine's memory bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jakiro_runtime.backends import Array
from jakiro_runtime.decoding.target_runner import TargetRunner
from jakiro_runtime.engine import Engine
from jakiro_runtime.profiling.statistics import summary

ROWS = (1, 2, 4, 8, 16, 32)
PASTS = (64, 512, 4096)
REPEATS = 7


class TimedPass:
    """Target passes of one sequence after a context of `past` tokens, each timed.

    features: of the last pass's rows, as the target gives them

    Its cache holds noise: memory that was never written would be read from one page of zeros.
    """

    def __init__(self, engine: Engine, past: int, most_rows: int) -> None:
        self._runner = TargetRunner(engine.bundle.target, engine.manifest)
        cache = self._runner.cache
        cache.reserve(past + max(2, most_rows))
        noise = np.random.default_rng(0).standard_normal(cache.keys.shape[-2:], dtype=np.float32)
        cache.keys[...] = noise
        cache.values[...] = noise
        cache.lengths[0] = past
        self.past, self.capacity = past, cache.capacity
        self.features: Array | None = None
        self.bytes_read = cache.keys.nbytes + cache.values.nbytes

    def milliseconds(self, rows: int) -> float:
        """One pass of `rows` rows in a chain; nothing of it is kept."""
        tokens, chain = np.ones((1, rows), np.int64), np.tri(rows, dtype=bool)[None]
        started = time.perf_counter()
        output = self._runner.run(tokens, np.arange(rows)[None], chain, logits=False)
        taken = 1e3 * (time.perf_counter() - started)
        self.features = output.features
        return taken


def pass_times(
    engine: Engine,
    repeats: int,
    rows: Sequence[int],
    pasts: Sequence[int],
    progress: Callable[[int], None] = lambda repeats: None,
) -> dict[TimedPass, np.ndarray]:
    """Milliseconds of target passes, [repeats, len(rows)] after each context; contexts that do not fit the engine are skipped.

    All sizes take turns, so that a slow moment of the machine falls on all of them.
    """
    room = engine.manifest.model.max_context - max(rows)
    passes = [TimedPass(engine, past, max(rows)) for past in pasts if past <= room]
    times = {each: np.zeros((repeats, len(rows))) for each in passes}
    for each in passes:
        for count in [count for _ in range(2) for count in rows]:  # the first passes of a shape allocate
            each.milliseconds(count)
    for repeat in range(repeats):
        for each in passes:
            each.milliseconds(rows[0])  # puts its cache where the other one's was
            times[each][repeat] = [each.milliseconds(count) for count in rows]
            progress(1)
    return times


def cost_by_rows(
    engine: Engine,
    repeats: int = REPEATS,
    rows: Sequence[int] = ROWS,
    pasts: Sequence[int] = PASTS,
    progress: Callable[[int], None] = lambda repeats: None,
) -> list[dict[str, Any]]:
    """Target passes of several sizes after several contexts, for a report.

    Returns:
        for each context: past and capacity (slots), bytes_read (of the cache, a pass), ms by rows
    """
    return [
        {
            "past": each.past,
            "capacity": each.capacity,
            "bytes_read": each.bytes_read,
            "ms": {str(count): summary(values) for count, values in zip(rows, times.T.tolist(), strict=True)},
        }
        for each, times in pass_times(engine, repeats, rows, pasts, progress).items()
    ]


def long_context(table: Sequence[dict[str, Any]], rows: int, gigabytes_per_second: float) -> dict[str, Any] | None:
    """A verification after the longest context against one after the shortest, and how much of that reading the cache explains.

    Args:
        table: of `cost_by_rows`
        rows: of a verification; the next larger count that was measured is taken
        gigabytes_per_second: the machine's memory bandwidth
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
    """Gigabytes per second that this many threads read from memory together; the max over repeats."""
    data = np.ones(megabytes * 1_000_000 // 8)
    parts = np.array_split(data, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, data.nbytes / 1e9 / (time.perf_counter() - started))
    return best
