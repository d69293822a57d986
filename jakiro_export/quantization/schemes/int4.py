"""Int4 by groups: a half-precision scale and minimum for every 32 inputs of an output.

A weight is `min + scale * n`, n from 0 to 15: what GGUF's Q4_1 files hold, so that the weights of such a target are taken as
they are, without any further rounding; others are rounded to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jakiro_export.artifact.weights import Weight
from jakiro_export.ops import row_int4_matmul
from jakiro_export.ops.row_int4_matmul import GROUP
from jakiro_export.quantization.layouts import cpu_tiles
from jakiro_export.quantization.scheme import RowScheme

_LARGEST = 15


class Int4(RowScheme):
    """Weights in int4 by groups of 32, activations in int8 by row and group."""

    name = "int4"
    operator = row_int4_matmul.NAME

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape[0] % cpu_tiles.OUTPUTS == 0 and shape[1] % GROUP == 0

    def initializers(self, matrix: Weight, name: str) -> dict[str, Weight]:
        return {
            f"{name}.bits": cpu_tiles.Nibbles(Steps(matrix)),
            f"{name}.scales": cpu_tiles.Columns(Scales(matrix)),
            f"{name}.mins": cpu_tiles.Columns(Mins(matrix)),
        }


@dataclass(frozen=True)
class Steps:
    """A matrix [out, in] in steps of its groups' scales, numbers from 0 to 15."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def panels(self) -> Iterator[np.ndarray]:
        for rows in self.weight.panels():
            scales, mins = (each.astype(np.float32)[..., None] for each in _rounded(rows))
            above = rows.reshape(len(rows), -1, GROUP).astype(np.float32) - mins
            steps = np.rint(np.divide(above, scales, out=np.zeros_like(above), where=scales > 0)).clip(0, _LARGEST)
            yield steps.astype(np.uint8).reshape(rows.shape)


@dataclass(frozen=True)
class _ByGroup:
    """A half-precision number for every group of a matrix [out, in], [out, in / 32]."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.weight.shape[0], self.weight.shape[1] // GROUP)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float16)


class Scales(_ByGroup):
    """The scale of every group."""

    def panels(self) -> Iterator[np.ndarray]:
        for rows in self.weight.panels():
            yield _rounded(rows)[0]


class Mins(_ByGroup):
    """The minimum of every group."""

    def panels(self) -> Iterator[np.ndarray]:
        for rows in self.weight.panels():
            yield _rounded(rows)[1]


def _rounded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scales and the minimums of groups, half precision [rows, in / 32]."""
    groups = rows.reshape(len(rows), -1, GROUP).astype(np.float32)
    mins = groups.min(-1)
    return ((groups.max(-1) - mins) / _LARGEST).astype(np.float16), mins.astype(np.float16)
