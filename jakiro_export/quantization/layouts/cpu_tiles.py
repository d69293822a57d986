"""Tiles of the CPU kernels: 16 outputs next to each other, for each of them the inputs that one instruction multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jakiro_export.artifact.weights import Weight, sixteens

OUTPUTS, INPUTS = 16, 4  # of a tile of bytes
NIBBLES = 32  # inputs of a tile of nibbles


@dataclass(frozen=True)
class Bytes:
    """A matrix [out, in] of single bytes as [out / 16, in / 4, 16, 4]."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.weight.shape
        return (rows // OUTPUTS, columns // INPUTS, OUTPUTS, INPUTS)

    @property
    def dtype(self) -> np.dtype:
        return self.weight.dtype

    def panels(self) -> Iterator[np.ndarray]:
        for rows in sixteens(self.weight):
            yield rows.reshape(-1, OUTPUTS, rows.shape[1] // INPUTS, INPUTS).swapaxes(1, 2)


@dataclass(frozen=True)
class Nibbles:
    """A matrix [out, in] of numbers from 0 to 15, two a byte, as [out / 16, in / 32, 4, 16, 4].

    The lower four bits hold inputs 0 to 3 of every eight, the upper four inputs 4 to 7.
    """

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.weight.shape
        return (rows // OUTPUTS, columns // NIBBLES, NIBBLES // 8, OUTPUTS, 4)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def panels(self) -> Iterator[np.ndarray]:
        for rows in sixteens(self.weight):
            pairs = rows.reshape(-1, OUTPUTS, self.shape[1], NIBBLES // 8, 2, 4)
            pairs = pairs.transpose(0, 2, 3, 4, 1, 5)  # [out / 16, in / 32, pair, 2, 16, 4]
            yield pairs[:, :, :, 0] | pairs[:, :, :, 1] << 4


@dataclass(frozen=True)
class Columns:
    """A number for each group of inputs, [out, groups], as [out / 16, groups, 16]."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        rows, groups = self.weight.shape
        return (rows // OUTPUTS, groups, OUTPUTS)

    @property
    def dtype(self) -> np.dtype:
        return self.weight.dtype

    def panels(self) -> Iterator[np.ndarray]:
        for rows in sixteens(self.weight):
            yield rows.reshape(-1, OUTPUTS, rows.shape[1]).swapaxes(1, 2)
