"""The cache commit of the plugin library against a plain loop."""

from __future__ import annotations

import numpy as np

from plugin_library import Library

BATCH, HEADS, ROWS, CAPACITY = 2, 3, 9, 16


def check_commit(library: Library, past: list[int], dims: tuple[int, ...] = (16, 16, 8), seed: int = 1) -> None:
    """Commits rows of len(dims) tensors, the last with double elements, and compares with a plain loop."""
    random = np.random.default_rng(seed)
    types = [np.float16] * (len(dims) - 1) + [np.float64]
    new_rows = [random.standard_normal((BATCH, HEADS, ROWS, d)).astype(t) for d, t in zip(dims, types, strict=True)]
    cache = [random.standard_normal((BATCH, HEADS, CAPACITY, d)).astype(t) for d, t in zip(dims, types, strict=True)]
    accepted = np.array([[0, 2, 3, 8], [0, 1, -1, 99]], np.int64)
    counts = np.array([4, 2], np.int64)
    expected = [tensor.copy() for tensor in cache]
    for source, target in zip(new_rows, expected, strict=True):
        for b in range(BATCH):
            for i in range(counts[b]):
                if past[b] + i < CAPACITY:
                    target[b, :, past[b] + i] = source[b, :, accepted[b, i]]
    library.kv_commit(new_rows, cache, accepted, counts, np.array(past, np.int64), seed=seed)
    for wanted, result in zip(expected, cache, strict=True):
        assert wanted.tobytes() == result.tobytes()
