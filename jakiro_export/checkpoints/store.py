"""Tensors by name, read a few rows at a time.

A 7B target has matrices of hundreds of megabytes; the exporter never holds one whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

_ROWS = 4096  # compared at a time


class TensorStore(Protocol):
    """Named tensors whose rows (slices of the first axis) can be read one panel at a time."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, by name."""

    def dtype(self, name: str) -> np.dtype:
        """The stored element type of a tensor."""

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start:stop` of a tensor, [stop - start, ...], in its stored element type."""


def same_rows(one: TensorStore, name: str, other: TensorStore, its: str) -> bool:
    """Whether two tensors, each by the name that its store has for it, hold the same numbers."""
    shape = one.shapes()[name]
    if other.shapes()[its] != shape:
        return False
    panels = ((start, min(start + _ROWS, shape[0])) for start in range(0, shape[0], _ROWS))
    return all((one.rows(name, *panel) == other.rows(its, *panel)).all() for panel in panels)
