"""Hadamard rotation."""

from __future__ import annotations

import numpy as np
import pytest

from dequantize import values
from jakiro_export.artifact.weights import Array
from jakiro_export.quantization.hadamard import Rotated, block_size, hadamard


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_the_matrix_is_symmetric_and_its_own_inverse(size: int) -> None:
    matrix = hadamard(size)
    assert np.array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix @ matrix, np.eye(size), atol=1e-6)


@pytest.mark.parametrize(("width", "block"), [(576, 64), (48, 16), (33, 1), (1024, 64)])
def test_blocks_divide_the_width(width: int, block: int) -> None:
    assert block_size(width) == block


def test_rotated_rows_times_a_rotated_matrix_are_the_product() -> None:
    random = np.random.default_rng(0)
    matrix, x = random.standard_normal((20, 48)).astype(np.float32), random.standard_normal((3, 48)).astype(np.float32)
    rotated = (x.reshape(-1, 16) @ hadamard(16)).reshape(x.shape)
    np.testing.assert_allclose(rotated @ values(Rotated(Array(matrix))).T, x @ matrix.T, atol=1e-5)
