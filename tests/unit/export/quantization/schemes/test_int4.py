"""Int4: what is written, and that GGUF's own weights are taken as they are."""

from __future__ import annotations

import numpy as np

import dequantize
from jakiro_export.quantization.schemes import SCHEMES


def test_the_weights_of_a_q4_1_file_are_taken_as_they_are() -> None:
    random = np.random.default_rng(0)
    scales = random.uniform(1e-4, 0.1, (48, 3, 1)).astype(np.float16).astype(np.float32)
    mins = random.uniform(-1, 0, (48, 3, 1)).astype(np.float16).astype(np.float32)
    steps = random.integers(0, 16, (48, 3, 32))
    steps[:, :, 7], steps[:, :, 30] = 0, 15  # such a file's scales come from a group's minimum and maximum
    matrix = (mins + scales * steps).reshape(48, 96)
    assert np.array_equal(dequantize.int4(matrix), matrix)
    matrix[5, 40] += scales[5, 1, 0] / 3  # a control: what is not on the grid moves
    assert not np.array_equal(dequantize.int4(matrix), matrix)


def test_other_weights_move_by_half_a_step_at_most() -> None:
    matrix = np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32)
    matrix[3] = 0.5
    groups = matrix.reshape(32, 2, 32)
    step = np.ptp(groups, -1, keepdims=True) / 15
    assert (np.abs(dequantize.int4(matrix).reshape(groups.shape) - groups) <= 0.51 * step + 1e-3 * np.abs(groups).max()).all()
    assert (dequantize.int4(matrix)[3] == 0.5).all()


def test_it_fits_whole_tiles_and_whole_groups() -> None:
    fits = SCHEMES["int4"].fits
    assert fits((16, 32))
    assert not fits((16, 48))
    assert not fits((24, 32))
