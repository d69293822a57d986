"""Row matmul in int4: a scale and a minimum for every 32 inputs of an output; rows in int8, a scale for every 32 entries.

A weight is `min + scale * n`, n from 0 to 15. A byte holds the weights of two inputs that lie four apart: the lower four bits
those of inputs 0 to 3 of every eight, the upper those of inputs 4 to 7. Rows need no rotation: an outlier costs the 31 entries
of its own group their precision, and no more.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import Tensor

from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import Operand
from jakiro_export.ops.row_matmul import RowMatmul, forms, quantize_rows, quantize_rows_body

NAME = "RowInt4MatMul"
GROUP = 32


def row_int4_matmul(x: Tensor, weight: Tensor, scales: Tensor, mins: Tensor) -> Tensor:
    """[..., out] of x [..., in]; operands as in the schema."""
    steps, scale = quantize_rows(x.unflatten(-1, (-1, GROUP)))  # [..., groups, 32], [..., groups, 1]
    halves = torch.stack([weight % 16, weight // 16], 3)  # [out / 16, groups, pair, half, 16, 4]
    matrix = halves.permute(1, 2, 3, 5, 0, 4).reshape(scales.shape[1], GROUP, -1).float()  # [groups, 32, out]
    by_group = [each.float().transpose(0, 1).reshape(each.shape[1], 1, -1) for each in (scales, mins)]  # [groups, 1, out]
    steps, scale = steps[..., None, :], scale[..., None]
    dots = (steps @ matrix) * (by_group[0] * scale)
    return (dots + by_group[1] * (steps.sum(-1, keepdim=True) * scale)).sum((-3, -2))


def _body(b: Body, x: str) -> str:
    """Sums over a group are whole numbers, and exact in float32."""
    last, group, one = b.constant([-1]), b.constant([GROUP]), b.constant([1])
    groups = b.add("Gather", b.add("Shape", "scales"), one)
    # rows as whole numbers [groups, rows, 32], and the scale of each group [groups, rows, 1]
    in_groups = b.add("Reshape", x, b.add("Concat", last, groups, group, axis=0))
    steps, scale = quantize_rows_body(b, b.add("Transpose", in_groups, perm=[1, 0, 2]))
    # the weights as whole numbers [groups, 32, out]
    pairs, sixteen, axis = b.cast("weight", onnx.TensorProto.FLOAT), b.constant(16, np.float32), b.constant([3])
    upper = b.add("Floor", b.add("Div", pairs, sixteen))
    lower = b.add("Sub", pairs, b.add("Mul", upper, sixteen))
    both = b.add("Concat", *(b.add("Unsqueeze", half, axis) for half in (lower, upper)), axis=3)
    in_order = b.add("Transpose", both, perm=[1, 2, 3, 5, 0, 4])
    matrix = b.add("Reshape", in_order, b.add("Concat", groups, group, last, axis=0))
    # scales and minimums [groups, 1, out]
    shape = b.add("Concat", groups, one, last, axis=0)
    scales, mins = (
        b.add("Reshape", b.add("Transpose", b.cast(name, onnx.TensorProto.FLOAT), perm=[1, 0, 2]), shape)
        for name in ("scales", "mins")
    )
    dots = b.add("Mul", b.add("MatMul", steps, matrix), b.add("Mul", scales, scale))
    sums = b.add("Mul", b.add("ReduceSum", steps, last, keepdims=1), scale)
    parts = b.add("Add", dots, b.add("Mul", mins, sums))
    total = b.add("ReduceSum", parts, b.constant([0]), keepdims=0)
    return b.add("Reshape", total, b.add("Concat", b.add("Shape", x, end=-1), last, axis=0))


def _example(random: np.random.Generator, out: int, width: int) -> dict[str, np.ndarray]:
    by_group = (out // 16, width // GROUP, 16)
    return {
        "weight": random.integers(0, 256, (out // 16, width // GROUP, 4, 16, 4)).astype(np.uint8),
        "scales": (random.random(by_group) / 100).astype(np.float16),
        "mins": (-random.random(by_group) / 15).astype(np.float16),
    }


OPERATORS = forms(
    RowMatmul(
        name=NAME,
        doc="rows, quantised to int8 by groups of 32, times an int4 matrix with a scale and a minimum for every group",
        weights=(
            Operand("weight", "uint8", "[out / 16, in / 32, 4, 16, 4], two weights a byte"),
            Operand("scales", "float16", "[out / 16, in / 32, 16]"),
            Operand("mins", "float16", "[out / 16, in / 32, 16]"),
        ),
        eager=row_int4_matmul,
        body=_body,
        example=_example,
    )
)
