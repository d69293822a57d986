"""Int8: what is written."""

from __future__ import annotations

import numpy as np

from dequantize import values
from jakiro_export.artifact.weights import Array
from jakiro_export.quantization.hadamard import hadamard
from jakiro_export.quantization.schemes import SCHEMES
from jakiro_export.quantization.schemes.int8 import Channels, ChannelScales


def test_weights_are_rounded_by_channel() -> None:
    matrix = np.random.default_rng(0).standard_normal((7, 33)).astype(np.float32)
    matrix[3] = 0
    matrix[4] *= 1000
    stored, scales = values(Channels(Array(matrix))), values(ChannelScales(Array(matrix)))
    assert stored.dtype == np.uint8
    back = (stored.astype(np.float32) - 128) * scales[:, None]
    assert (np.abs(back - matrix) <= scales[:, None] * 0.5001).all()
    assert (back[3] == 0).all()


def test_what_a_matmul_reads_is_the_rotated_matrix_in_tiles() -> None:
    matrix = np.random.default_rng(1).standard_normal((32, 48)).astype(np.float32)
    written = SCHEMES["int8"].initializers(Array(matrix), "w")
    assert list(written) == ["rotation_16", "w.bytes", "w.scales"]  # 48 = 3 * 16
    rotation, tiles, scales = map(values, written.values())
    assert np.array_equal(rotation, hadamard(16))
    rotated = (tiles.swapaxes(1, 2).reshape(32, 48).astype(np.float32) - 128) * scales[:, None]
    back = (rotated.reshape(-1, 16) @ rotation).reshape(32, 48)
    assert np.abs(back - matrix).max() < 0.05


def test_it_fits_whole_tiles() -> None:
    fits = SCHEMES["int8"].fits
    assert fits((16, 4))
    assert not fits((16, 6))
    assert not fits((4, 64))  # a router's few outputs
