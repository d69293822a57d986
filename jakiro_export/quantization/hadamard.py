"""Hadamard rotation of a matrix's inputs, which spreads outliers of activations (QuaRot, arXiv 2404.00456)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jakiro_export.artifact.weights import Weight


def hadamard(size: int) -> np.ndarray:
    """The normalised Hadamard matrix [size, size] of a power of two: symmetric, and its own inverse."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.sqrt(size)).astype(np.float32)


def block_size(width: int) -> int:
    """How many entries of a row of `width` are rotated together: the largest power of two that divides it, at most 64."""
    return min(64, width & -width)


@dataclass(frozen=True)
class Rotated:
    """A matrix [out, in] whose rows are rotated as `RowInt8MatMul` rotates activations."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def panels(self) -> Iterator[np.ndarray]:
        block = block_size(self.shape[1])
        for panel in self.weight.panels():
            rows = panel.astype(np.float32)
            yield (rows.reshape(-1, block) @ hadamard(block)).reshape(rows.shape)
