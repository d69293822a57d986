"""GroupMatMul of the CPU build against the standard operators' arithmetic in double precision."""

from __future__ import annotations

import numpy as np

from plugin_library import DTYPES, Library


def check_group_matmul(
    library: Library, rows: int, size_in: int, size_out: int, group: int, type: str = "half", seed: int = 0
) -> None:
    """One random call. Raises AssertionError, of which Fault is one."""
    random = np.random.default_rng([rows, size_in, size_out, group])
    dtype = DTYPES[type]
    x = random.standard_normal((rows, size_in)).astype(dtype)
    steps = random.integers(-8, 8, (size_in, size_out)).astype(np.int8)
    scales = random.uniform(0.02, 0.1, (size_in // group, size_out)).astype(dtype)
    # DequantizeLinear rounds the product to the scales' type
    matrix = (steps.astype(np.float32) * np.repeat(scales, group, 0).astype(np.float32)).astype(dtype).astype(np.float64)
    exact = x.astype(np.float64) @ matrix
    found = library.group_matmul(x, steps, scales, type, seed).astype(np.float64)
    allowed = (
        np.abs(exact) * 2.0 ** (-8 if type == "bfloat16" else -11) + (np.abs(x.astype(np.float64)) @ np.abs(matrix)) * 2.0**-20
    )
    wrong = ~(np.abs(found - exact) <= allowed)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} values off, the first at {np.argwhere(wrong)[0]}"
