"""Key/value caches: read in place by a graph, written only at their tail.

All layers share two arrays, so that committing the accepted rows of every layer is one call. The capacity grows in buckets, which
keeps the shapes that a graph meets few. Where the arrays live is the backend's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jakiro_runtime.backends import Array, Memory
from jakiro_runtime.backends.host import HostMemory
from jakiro_runtime.contract import new_rows_of

FIRST_BUCKET = 256


def bucket(slots: int) -> int:
    """The capacity that holds `slots` slots: 256, 512, 1024, ..."""
    capacity = FIRST_BUCKET
    while capacity < slots:
        capacity *= 2
    return capacity


class SequenceBuffer:
    """Rows of every sequence, appended to those it has: arrays [layers, batch, heads, capacity, width], one for each type.

    arrays: the rows; slots from a sequence's length on hold anything
    lengths: how many slots of each sequence are valid, int64 [batch]
    """

    def __init__(
        self, memory: Memory, layers: int, batch: int, heads: int, width: int, dtypes: Sequence[np.dtype], slots: int = 1
    ) -> None:
        self._memory, self._layers, self._heads, self._width, self._dtypes = memory, layers, heads, width, tuple(dtypes)
        self.arrays: list[Array] = []
        self.capacity, self.lengths = 0, np.zeros(batch, np.int64)
        self.reserve(slots)

    def _empty(self, batch: int, slots: int) -> list[Array]:
        shape = (self._layers, batch, self._heads, slots, self._width)
        return [self._memory.layers(shape, dtype) for dtype in self._dtypes]

    def reserve(self, slots: int) -> bool:
        """Make room for `slots` slots. True where the arrays were replaced and must be bound again."""
        if slots <= self.capacity:
            return False
        self.capacity = self._bucket(slots)
        arrays, filled = self._empty(len(self.lengths), self.capacity), int(self.lengths.max())
        if filled:
            for array, before in zip(arrays, self.arrays, strict=True):
                array[..., :filled, :] = before[..., :filled, :]
        self.arrays = arrays
        return True

    def _bucket(self, slots: int) -> int:
        longest = self._memory.longest_cache
        return bucket(slots) if longest is None or slots > longest else min(bucket(slots), longest)

    def append(self, sources: Sequence[Array], rows: Sequence[Sequence[int]]) -> None:
        """Append some rows to each sequence; `reserve` has made the room.

        Args:
            sources: [layers, batch, heads, rows, width], one for each array
            rows: for each sequence, the rows to keep, ascending; may be empty
        """
        self._memory.append(list(zip(sources, self.arrays, strict=True)), rows, self.lengths.tolist())
        for number, kept in enumerate(rows):
            self.lengths[number] += len(kept)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget every slot of a sequence from `length` on. Nothing is cleared: graphs see `past_length` slots only."""
        self.lengths[sequence] = min(int(self.lengths[sequence]), length)

    def assemble(self, parts: Sequence[tuple[SequenceBuffer, int]]) -> None:
        """Hold copies of these sequences, (buffer, number) each, in place of its own; the arrays must be bound again."""
        lengths = np.array([buffer.lengths[number] for buffer, number in parts], np.int64)
        capacity = max(self.capacity, self._bucket(max(1, int(lengths.max()))))
        arrays = self._empty(len(parts), capacity)
        for which, array in enumerate(arrays):
            for place, (buffer, number) in enumerate(parts):
                if filled := int(lengths[place]):
                    array[:, place, :, :filled] = buffer.arrays[which][:, number, :, :filled]
        self.arrays, self.capacity, self.lengths = arrays, capacity, lengths


class KVCache(SequenceBuffer):
    """Keys and values of every layer for a batch of sequences.

    names: the graph's inputs, one (key, value) pair a layer
    """

    def __init__(
        self,
        names: Sequence[tuple[str, str]],
        kv_heads: int,
        head_dim: int,
        dtypes: tuple[np.dtype, np.dtype],
        batch: int = 1,
        memory: Memory | None = None,
    ) -> None:
        self.names = list(names)
        super().__init__(memory or HostMemory(), len(names), batch, kv_heads, head_dim, dtypes)

    @property
    def keys(self) -> Array:
        return self.arrays[0]

    @property
    def values(self) -> Array:
        return self.arrays[1]

    def inputs(self) -> dict[str, Array]:
        """The arrays to bind, by the graph's input names; no copies."""
        bound: dict[str, Array] = {}
        for layer, (key, value) in enumerate(self.names):
            bound[key], bound[value] = self.keys[layer], self.values[layer]
        return bound

    def scratch(self, rows: int) -> tuple[Array, Array, dict[str, Array]]:
        """Arrays for a call's new rows, [layers, batch, kv_heads, rows, head_dim], and their slices by output name."""
        keys, values = self._empty(len(self.lengths), rows)
        outputs: dict[str, Array] = {}
        for layer, (key, value) in enumerate(self.names):
            outputs[new_rows_of(key)] = keys[layer]
            outputs[new_rows_of(value)] = values[layer]
        return keys, values, outputs

    def commit(self, keys: Array, values: Array, rows: Sequence[Sequence[int]]) -> None:
        """Append some rows of a call's scratch to each sequence, as `append` does."""
        self.append((keys, values), rows)

    def export(self) -> tuple[np.ndarray, np.ndarray]:
        """What the first sequence holds: keys and values, [layers, kv_heads, length, head_dim], copied."""
        length = int(self.lengths[0])
        return self.keys[:, 0, :, :length].copy(), self.values[:, 0, :, :length].copy()

    def load(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Take the first sequence from what `export` gave.

        Raises:
            ValueError: shapes or types do not fit this cache
        """
        for name, array, dtype in zip(("keys", "values"), (keys, values), self._dtypes, strict=True):
            fits = (self._layers, self._heads, keys.shape[2] if keys.ndim == 4 else -1, self._width)
            if array.dtype != dtype or array.shape != fits:
                raise ValueError(f"{name} are {array.dtype} {list(array.shape)}, expected {dtype} {list(fits)}")
        length = keys.shape[2]
        self.lengths[0] = 0
        self.reserve(max(1, length))
        self.keys[:, 0, :, :length], self.values[:, 0, :, :length] = keys, values
        self.lengths[0] = length
