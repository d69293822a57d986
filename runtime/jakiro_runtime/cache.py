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
    """Keys and values of every layer, [layers, batch, kv_heads, capacity, head_dim].

    names: the graph's inputs, one (key, value) pair a layer
    length: how many slots are valid
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
        self.names, self.length, self.capacity = list(names), 0, 0
        self._shape, self._dtypes = (len(self.names), batch, kv_heads, head_dim), dtypes
        self.reserve(1)

    def reserve(self, slots: int) -> bool:
        """Make room for `slots` slots. True where the arrays were replaced and must be bound again."""
        if slots <= self.capacity:
            return False
        layers, batch, heads, dim = self._shape
        self.capacity = bucket(slots)
        keys, values = [np.zeros((layers, batch, heads, self.capacity, dim), dtype) for dtype in self._dtypes]
        if self.length:
            keys[..., : self.length, :] = self.keys[..., : self.length, :]
            values[..., : self.length, :] = self.values[..., : self.length, :]
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
        layers, batch, heads, dim = self._shape
        keys, values = (np.zeros((layers, batch, heads, rows, dim), dtype) for dtype in self._dtypes)
        outputs: dict[str, np.ndarray] = {}
        for layer, (key, value) in enumerate(self.names):
            outputs[key.replace("past_", "new_")] = keys[layer]
            outputs[value.replace("past_", "new_")] = values[layer]
        return keys, values, outputs

    def commit(self, keys: np.ndarray, values: np.ndarray, rows: Sequence[int]) -> None:
        """Append some rows of a call's scratch; `reserve` has made the room."""
        start, stop = self.length, self.length + len(rows)
        if rows[-1] - rows[0] == len(rows) - 1:  # one run of rows: a slice, without a gather
            picked = slice(rows[0], rows[-1] + 1)
            self.keys[..., start:stop, :] = keys[..., picked, :]
            self.values[..., start:stop, :] = values[..., picked, :]
        else:
            index = np.asarray(rows)
            self.keys[..., start:stop, :] = keys[..., index, :]
            self.values[..., start:stop, :] = values[..., index, :]
        self.length = stop

    def truncate(self, length: int) -> None:
        """Forget every slot from `length` on. Nothing is cleared: graphs see `past_length` slots only."""
        self.length = min(self.length, length)
