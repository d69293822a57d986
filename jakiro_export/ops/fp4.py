"""NVFP4 as operators: four-bit floats in blocks of 16, for weights and for activations.

TensorRT takes them as standard `QuantizeLinear` and `DequantizeLinear` nodes (opset 23) over the type FLOAT4E2M1, for which ONNX
Runtime has no kernels on a CPU. So the graph has operators whose bodies look the sixteen values up, or round by comparing, and
`jakiro-build` writes the standard nodes in their place (`jakiro_export.tensorrt.fp4`). The numbers are the same in both.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor

from jakiro_export.ops import DEQUANTIZE_FP4, FP4_BLOCK, FP4_ROW_STEP, ROUND_FP4
from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import CallSite, Example, Operand, Operator

DEQUANTIZE, ROUND, BLOCK, ROW_STEP = DEQUANTIZE_FP4, ROUND_FP4, FP4_BLOCK, FP4_ROW_STEP
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LARGEST = 6.0


def _table(dtype: np.dtype) -> np.ndarray:
    return np.array([*VALUES, *(-value for value in VALUES)], dtype)


def dequantize_fp4(scales: Tensor, packed: Tensor) -> Tensor:
    """A matrix [in, out] from bytes [in, out / 2], the first of two outputs in the lower bits, and scales [in / 16, out]."""
    both = torch.stack([packed & 15, packed >> 4], -1).flatten(1).long()
    table = torch.tensor(_table(np.dtype(np.float64))).to(scales.dtype)
    return table[both] * scales.repeat_interleave(BLOCK, 0)


def _dequantize_body(b: Body, site: CallSite) -> tuple[str, ...]:
    last, sixteen = b.constant([-1]), b.constant(BLOCK, np.uint8)
    upper = b.add("Div", "packed", sixteen)
    lower = b.add("Sub", "packed", b.add("Mul", upper, sixteen))
    both = b.add("Concat", b.add("Unsqueeze", lower, last), b.add("Unsqueeze", upper, last), axis=-1)
    index = b.cast(b.add("Reshape", both, b.constant([0, -1])), TensorProto.INT32)
    table = b.add("Constant", value=helper.make_tensor("table", site.type, [16], _table(np.dtype(np.float64)).tolist()))
    blocks = b.add("Concat", b.size("scales", 0), b.constant([BLOCK]), b.size("scales", 1), axis=0)
    values = b.add("Reshape", b.add("Gather", table, index), blocks)
    matrix = b.add("Mul", values, b.add("Unsqueeze", "scales", b.constant([1])))
    return (b.add("Reshape", matrix, b.add("Concat", b.size("packed", 0), b.size("scales", 1), axis=0)),)


def round_fp4(x: Tensor) -> Tensor:
    """Rows within -1 to 1, [..., in], rounded to NVFP4: the value nearest in each block's scale, ties to the even code."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    wanted = (blocks.abs().amax(-1, keepdim=True) / _LARGEST).to(x.dtype)
    scale = (wanted / ROW_STEP).float().to(torch.float8_e4m3fn).to(x.dtype) * ROW_STEP
    steps = torch.where(scale > 0, blocks / torch.where(scale > 0, scale, torch.ones_like(scale)), torch.zeros_like(blocks))
    size, found = steps.abs(), torch.zeros_like(steps)
    for number, (low, high) in enumerate(pairwise(VALUES)):
        middle = (low + high) / 2
        above = size >= middle if number % 2 else size > middle  # a tie goes to the even code
        found = torch.where(above, torch.full_like(found, high), found)
    return (torch.sign(steps) * found * scale).flatten(-2)


def _round_body(b: Body, site: CallSite) -> tuple[str, ...]:
    def real(value: float) -> str:
        return b.add("Constant", value=helper.make_tensor("value", site.type, [], [value]))

    last, zero = b.constant([-1]), real(0.0)

    lead = b.add("Shape", "x", end=-1)
    blocks = b.add("Reshape", "x", b.add("Concat", lead, b.constant([-1, BLOCK]), axis=0))
    largest = b.add("ReduceMax", b.add("Abs", blocks), last, keepdims=1)
    wanted = b.add("Div", b.add("Div", largest, real(_LARGEST)), real(ROW_STEP))
    scale = b.add("Mul", b.cast(b.cast(wanted, TensorProto.FLOAT8E4M3FN), site.type), real(ROW_STEP))
    used = b.add("Where", b.add("Greater", scale, zero), scale, real(1.0))
    steps = b.add("Where", b.add("Greater", scale, zero), b.add("Div", blocks, used), zero)
    size = b.add("Abs", steps)
    found = b.add("Mul", size, zero)
    for number, (low, high) in enumerate(pairwise(VALUES)):
        above = b.add("GreaterOrEqual" if number % 2 else "Greater", size, real((low + high) / 2))
        found = b.add("Where", above, real(high), found)
    rounded = b.add("Mul", b.add("Mul", b.add("Sign", steps), found), scale)
    return (b.add("Reshape", rounded, b.add("Shape", "x")),)


def _dequantize_example(random: np.random.Generator) -> Example:
    scales = random.random((3, 10)).astype(np.float32)
    return Example({"scales": scales, "packed": random.integers(0, 256, (3 * BLOCK, 5)).astype(np.uint8)}, {})


def _round_example(random: np.random.Generator) -> Example:
    x = random.uniform(-1, 1, (2, 3, 4 * BLOCK)).astype(np.float32)
    x[0, 0, :BLOCK] = 0
    return Example({"x": x}, {})


OPERATORS = (
    Operator(
        name=DEQUANTIZE,
        doc="A matrix of four-bit floats (E2M1) in blocks of 16 inputs, each with a scale.",
        inputs=(Operand("scales", "T", "[in / 16, out]"), Operand("packed", "uint8", "[in, out / 2], two values a byte")),
        outputs=(Operand("matrix", "T", "[in, out]"),),
        eager=dequantize_fp4,
        body=_dequantize_body,
        opset=19,
        by_site=True,
        example=_dequantize_example,
    ),
    Operator(
        name=ROUND,
        doc="Rows within -1 to 1, rounded to four-bit floats with an fp8 scale for each block of 16.",
        inputs=(Operand("x", "T", "[..., in]"),),
        outputs=(Operand("y", "T", "[..., in]"),),
        eager=round_fp4,
        body=_round_body,
        opset=19,
        by_site=True,
        example=_round_example,
    ),
)
