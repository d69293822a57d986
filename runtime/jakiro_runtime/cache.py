"""The key/value cache of one graph: read in place by the graph, written only at its tail.

All layers share two arrays, so that committing the accepted rows of every layer is two indexed copies. The capacity grows in
buckets, which keeps the shapes that a graph meets few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FIRST_BUCKET = 256


def bucket(slots: int) -> int:
    """The capacity that holds `slots` slots: 256, 512, 1024, ..."""
    capacity = FIRST_BUCKET
    while capacity < slots:
        capacity *= 2
    return capacity


class KVCache:
    """Keys and values of every layer for a batch of sequences, [layers, batch, kv_heads, capacity, head_dim].

    names: the graph's inputs, one (key, value) pair a layer
    lengths: how many slots of each sequence are valid, int64 [batch]
    """

    def __init__(
        self,
        names: Sequence[tuple[str, str]],
        kv_heads: int,
        head_dim: int,
        dtypes: tuple[np.dtype, np.dtype],
        batch: int = 1,
    ) -> None:
        self.keys: np.ndarray
        self.values: np.ndarray
        self.names, self.capacity, self.lengths = list(names), 0, np.zeros(batch, np.int64)
        self._heads, self._dim, self._dtypes = kv_heads, head_dim, dtypes
        self.reserve(1)

    def _empty(self, batch: int, slots: int) -> list[np.ndarray]:
        shape = (len(self.names), batch, self._heads, slots, self._dim)
        return [np.zeros(shape, dtype) for dtype in self._dtypes]

    def reserve(self, slots: int) -> bool:
        """Make room for `slots` slots. True where the arrays were replaced and must be bound again."""
        if slots <= self.capacity:
            return False
        self.capacity = bucket(slots)
        keys, values = self._empty(len(self.lengths), self.capacity)
        held = int(self.lengths.max())
        if held:
            keys[..., :held, :] = self.keys[..., :held, :]
            values[..., :held, :] = self.values[..., :held, :]
        self.keys, self.values = keys, values
        return True

    def inputs(self) -> dict[str, np.ndarray]:
        """The arrays to bind, by the graph's input names; no copies."""
        bound: dict[str, np.ndarray] = {}
        for layer, (key, value) in enumerate(self.names):
            bound[key], bound[value] = self.keys[layer], self.values[layer]
        return bound

    def scratch(self, rows: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Arrays for a call's new rows, [layers, batch, kv_heads, rows, head_dim], and their slices by output name."""
        keys, values = self._empty(len(self.lengths), rows)
        outputs: dict[str, np.ndarray] = {}
        for layer, (key, value) in enumerate(self.names):
            outputs[key.replace("past_", "new_")] = keys[layer]
            outputs[value.replace("past_", "new_")] = values[layer]
        return keys, values, outputs

    def commit(self, keys: np.ndarray, values: np.ndarray, rows: Sequence[Sequence[int]]) -> None:
        """Append some rows of a call's scratch to each sequence; `reserve` has made the room.

        Args:
            keys, values: as `scratch` made them
            rows: for each sequence, the rows to keep, ascending; may be empty
        """
        for number, kept in enumerate(rows):
            if not kept:
                continue
            start = int(self.lengths[number])
            stop = start + len(kept)
            # one run of rows, as a chain or a prompt's chunk is: a slice, without a gather
            run = kept[-1] - kept[0] == len(kept) - 1
            picked = slice(kept[0], kept[-1] + 1) if run else np.asarray(kept)
            self.keys[:, number, :, start:stop] = keys[:, number][:, :, picked]
            self.values[:, number, :, start:stop] = values[:, number][:, :, picked]
            self.lengths[number] = stop

    def truncate(self, sequence: int, length: int) -> None:
        """Forget every slot of a sequence from `length` on. Nothing is cleared: graphs see `past_length` slots only."""
        self.lengths[sequence] = min(int(self.lengths[sequence]), length)

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop every other sequence. The arrays are replaced and must be bound again."""
        index = np.asarray(sequences)
        self.lengths = self.lengths[index]
        self.keys, self.values = np.ascontiguousarray(self.keys[:, index]), np.ascontiguousarray(self.values[:, index])

    def export(self) -> tuple[np.ndarray, np.ndarray]:
        """What the first sequence holds: keys and values, [layers, kv_heads, length, head_dim], copied."""
        length = int(self.lengths[0])
        return self.keys[:, 0, :, :length].copy(), self.values[:, 0, :, :length].copy()

    def load(self, keys: np.ndarray, values: np.ndarray) -> bool:
        """Take the first sequence from what `export` gave. False where shapes or types do not fit."""
        for array, dtype in zip((keys, values), self._dtypes, strict=True):
            fits = (len(self.names), self._heads, self._dim)
            if array.ndim != 4 or array.dtype != dtype or (*array.shape[:2], array.shape[3]) != fits:
                return False
        if keys.shape != values.shape:
            return False
        length = keys.shape[2]
        self.lengths[0] = 0
        self.reserve(max(1, length))
        self.keys[:, 0, :, :length], self.values[:, 0, :, :length] = keys, values
        self.lengths[0] = length
        return True
