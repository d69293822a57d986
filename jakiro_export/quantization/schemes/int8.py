"""Int8 by channel: a scale for each output of a matrix whose inputs went through a Hadamard rotation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jakiro_export.artifact.weights import Array, Weight
from jakiro_export.ops import row_int8_matmul
from jakiro_export.ops.row_matmul import SMALLEST
from jakiro_export.quantization.hadamard import Rotated, block_size, hadamard
from jakiro_export.quantization.layouts import cpu_tiles
from jakiro_export.quantization.scheme import RowScheme


class Int8(RowScheme):
    """Weights in int8 by channel, activations in int8 by row, both rotated."""

    name = "int8"
    operator = row_int8_matmul.NAME

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape[0] % cpu_tiles.OUTPUTS == 0 and shape[1] % cpu_tiles.INPUTS == 0

    def initializers(self, matrix: Weight, name: str) -> dict[str, Weight]:
        block, rotated = block_size(matrix.shape[1]), Rotated(matrix)
        return {
            f"rotation_{block}": Array(hadamard(block)),
            f"{name}.bytes": cpu_tiles.Bytes(Channels(rotated)),
            f"{name}.scales": ChannelScales(rotated),
        }


@dataclass(frozen=True)
class Channels:
    """A matrix [out, in] in unsigned bytes around 128, each row scaled so that its largest magnitude is 127."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def panels(self) -> Iterator[np.ndarray]:
        for panel in self.weight.panels():
            rows = panel.astype(np.float32)
            yield (np.rint(rows / _scales(rows)[:, None]) + row_int8_matmul.ZERO_POINT).astype(np.uint8)


@dataclass(frozen=True)
class ChannelScales:
    """What each row of `Channels` is multiplied by, [out]."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape[:1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def panels(self) -> Iterator[np.ndarray]:
        for panel in self.weight.panels():
            yield _scales(panel.astype(np.float32))


def _scales(rows: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(rows).max(1), np.float32(SMALLEST)) / np.float32(127)
