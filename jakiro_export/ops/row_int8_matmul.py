"""Row matmul in int8: a scale for each output channel; rows rotated, then int8 with a scale for each.

A few entries of an activation (outliers) are far larger than the rest and would leave the others few steps. So rows first go
through a Hadamard matrix, `block` entries at a time, which spreads an outlier over its block (QuaRot, arXiv 2404.00456); the
weights went through the same matrix when they were written, and the product stays what it was.

Both operands of the body are unsigned with zero point 128. Signed weights would do, but CPUs with AVX2 and no VNNI multiply
unsigned by signed int8 with saturation. The layout of the weights is that of the runtime's kernel (`jakiro_runtime/kernels`);
ONNX Runtime folds the body's transposition when it loads the graph.
"""

from __future__ import annotations

import numpy as np
import onnx
from torch import Tensor

from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import Operand
from jakiro_export.ops.row_matmul import RowMatmul, forms, quantize_rows, quantize_rows_body

NAME = "RowInt8MatMul"
ZERO_POINT = 128


def row_int8_matmul(x: Tensor, rotation: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """[..., out] of x [..., in]; operands as in the schema."""
    steps, scale = quantize_rows((x.unflatten(-1, (-1, len(rotation))) @ rotation).flatten(-2))
    matrix = weight.transpose(1, 2).reshape(len(scales), -1).double() - ZERO_POINT  # [out, in]
    return (steps.double() @ matrix.T).float() * scale * scales


def _body(b: Body, x: str) -> str:
    last, zero = b.constant([-1]), b.constant(ZERO_POINT, np.uint8)
    # the rotation, `block` entries of a row at a time
    block, _ = b.add_many("Split", b.add("Shape", "rotation"), b.constant([1, 1]), outputs=2, axis=0)
    in_blocks = b.add("Reshape", x, b.add("Concat", last, block, axis=0))
    rotated = b.add("Reshape", b.add("MatMul", in_blocks, "rotation"), b.add("Shape", x))
    # rows as bytes around 128
    steps, scale = quantize_rows_body(b, rotated)
    rows = b.cast(b.add("Add", steps, b.constant(ZERO_POINT, np.float32)), onnx.TensorProto.UINT8)
    # the weights as a matrix [in, out]
    shape = b.add("Concat", last, b.add("Shape", "scales"), axis=0)
    matrix = b.add("Reshape", b.add("Transpose", "weight", perm=[1, 3, 0, 2]), shape)
    sums = b.cast(b.add("MatMulInteger", rows, matrix, zero, zero), onnx.TensorProto.FLOAT)
    return b.add("Mul", b.add("Mul", sums, scale), "scales")


def _example(random: np.random.Generator, out: int, width: int) -> dict[str, np.ndarray]:
    rotation, _ = np.linalg.qr(random.standard_normal((16, 16)))
    return {
        "rotation": rotation.astype(np.float32),
        "weight": random.integers(1, 256, (out // 16, width // 4, 16, 4)).astype(np.uint8),
        "scales": random.random(out).astype(np.float32) / 100,
    }


OPERATORS = forms(
    RowMatmul(
        name=NAME,
        doc="rotated rows, quantised one by one to int8, times an int8 matrix with a scale for each output",
        weights=(
            Operand("rotation", "float", "[block, block]"),
            Operand("weight", "uint8", "[out / 16, in / 4, 16, 4], around 128"),
            Operand("scales", "float", "[out]"),
        ),
        eager=row_int8_matmul,
        body=_body,
        example=_example,
    )
)
