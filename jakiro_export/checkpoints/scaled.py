"""Tensors of a store, some of them scaled by row or by column: what exchanges factors between matrices that follow each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jakiro_export.checkpoints.store import TensorStore


@dataclass(eq=False)
class ScaledStore:
    """A `TensorStore` over another.

    rows_by, columns_by: for some tensors, by name, what their rows or columns are multiplied by, float32; a vector has rows only
    """

    store: TensorStore
    rows_by: dict[str, np.ndarray] = field(default_factory=dict)
    columns_by: dict[str, np.ndarray] = field(default_factory=dict)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.store.shapes()

    def dtype(self, name: str) -> np.dtype:
        scaled = name in self.rows_by or name in self.columns_by
        return np.dtype(np.float32) if scaled else self.store.dtype(name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        values, rows, columns = self.store.rows(name, start, stop), self.rows_by.get(name), self.columns_by.get(name)
        if rows is None and columns is None:
            return values
        values = values.astype(np.float32)
        if rows is not None:
            values = values * rows[start:stop].reshape(-1, *[1] * (values.ndim - 1))
        return values if columns is None else values * columns
