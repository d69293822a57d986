"""CPU tiles: where each number lies, whatever the panels it comes in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from dequantize import values
from jakiro_export.quantization.layouts.cpu_tiles import Bytes, Columns, Nibbles


@dataclass(frozen=True)
class InPanels:
    """A matrix, seven rows a panel."""

    value: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype

    def panels(self) -> Iterator[np.ndarray]:
        yield from (self.value[start : start + 7] for start in range(0, len(self.value), 7))


@pytest.fixture
def matrix() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 16, (48, 64)).astype(np.uint8)


def test_bytes_lie_by_sixteen_outputs_and_four_inputs(matrix: np.ndarray) -> None:
    tiles = values(Bytes(InPanels(matrix)))
    for row, column in np.ndindex(matrix.shape):
        assert tiles[row // 16, column // 4, row % 16, column % 4] == matrix[row, column]


def test_nibbles_pair_inputs_four_apart(matrix: np.ndarray) -> None:
    tiles = values(Nibbles(InPanels(matrix)))
    for row, column in np.ndindex(matrix.shape):
        byte = tiles[row // 16, column // 32, column % 32 // 8, row % 16, column % 4]
        assert (byte >> 4 if column % 8 >= 4 else byte & 15) == matrix[row, column]


def test_a_groups_numbers_lie_by_sixteen_outputs(matrix: np.ndarray) -> None:
    tiles = values(Columns(InPanels(matrix)))
    for row, column in np.ndindex(matrix.shape):
        assert tiles[row // 16, column, row % 16] == matrix[row, column]
