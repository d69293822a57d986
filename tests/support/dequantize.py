"""Written weights read back: what a kernel multiplies with."""

from __future__ import annotations

import numpy as np

from jakiro_export.artifact.weights import Array, Weight
from jakiro_export.quantization.schemes import SCHEMES


def values(weight: Weight) -> np.ndarray:
    """A weight as it is written."""
    found = np.concatenate(list(weight.panels()))
    assert found.shape == weight.shape
    assert found.dtype == weight.dtype
    return found


def int4(matrix: np.ndarray) -> np.ndarray:
    """What a matrix [out, in] is after it was written in int4."""
    bits, scales, mins = (values(weight) for weight in SCHEMES["int4"].initializers(Array(matrix), "").values())
    assert (bits.dtype, scales.dtype, mins.dtype) == (np.uint8, np.float16, np.float16)
    steps = np.stack([bits & 15, bits >> 4], 3)  # [out / 16, groups, pair, half, 16, 4]
    steps = steps.transpose(0, 4, 1, 2, 3, 5).reshape(len(matrix), -1, 32)
    by_row = [each.swapaxes(1, 2).reshape(len(matrix), -1, 1).astype(np.float32) for each in (scales, mins)]
    return (by_row[1] + by_row[0] * steps).reshape(matrix.shape)
