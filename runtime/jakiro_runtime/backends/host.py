"""The host's memory: NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jakiro_runtime.backends import Pair, append_runs


class HostMemory:
    """As `jakiro_runtime.backends.Memory` asks; everything is a NumPy array."""

    longest_cache: int | None = None

    def zeros(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        return np.zeros(shape, dtype)

    def layers(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        return np.zeros(shape, dtype)

    def staging(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        return np.zeros(shape, dtype)

    def append(self, pairs: Sequence[Pair], rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> None:
        append_runs(pairs, rows, firsts)
