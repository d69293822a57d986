"""Weights of four bits, a scale and a least value for every 32 inputs of an output; rows in bytes, a scale for every 32 entries.

    weight [out / 16, in / 32, 4, 16, 4]: two weights a byte; scales, least [out / 16, in / 32, 16]: half precision

A weight is `least + scale * n`, n from 0 to 15: what GGUF's Q4_1 files hold, so that the weights of such a target are taken as
they are, without any further rounding; others are rounded to it. A byte has the weights of two inputs that lie four apart: the
lower four bits those of inputs 0 to 3 of every eight, the upper those of inputs 4 to 7. Rows need no rotation: an entry far
larger than the rest costs the 31 beside it their precision, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from jakiro_export.artifact.weights import Weight, sixteens
from jakiro_export.ops.body import Body
from jakiro_export.quantization.int8 import LANES, LEAST

NAME = "RowInt4MatMul"
INPUTS = {"x": "tensor(float)", "weight": "tensor(uint8)", "scales": "tensor(float16)", "least": "tensor(float16)"}
_GROUP, _MOST = 32, 15


def fits(shape: tuple[int, ...]) -> bool:
    """Whether a matrix [out, in] can be tiled."""
    return shape[0] % LANES == 0 and shape[1] % _GROUP == 0


def initializers(channels: Weight, name: str) -> dict[str, Weight]:
    """What a product with a matrix [out, in] of this name needs, by the names to give it."""
    return {f"{name}.bits": Nibbles(channels), f"{name}.scales": Scales(channels), f"{name}.least": Least(channels)}


@dataclass(frozen=True)
class _Grouped:
    """Something of every group of a matrix [out, in], [out / 16, in / 32, 16]."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.weight.shape[0] // LANES, self.weight.shape[1] // _GROUP, LANES)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float16)

    def panels(self) -> Iterator[np.ndarray]:
        for rows in sixteens(self.weight):
            yield self.of(*_rounded(rows)).reshape(-1, LANES, self.shape[1]).swapaxes(1, 2)

    def of(self, scales: np.ndarray, least: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Scales(_Grouped):
    """The scale of every group."""

    def of(self, scales: np.ndarray, least: np.ndarray) -> np.ndarray:
        return scales


class Least(_Grouped):
    """The least value of every group."""

    def of(self, scales: np.ndarray, least: np.ndarray) -> np.ndarray:
        return least


@dataclass(frozen=True)
class Nibbles:
    """A matrix [out, in] in steps of its groups' scales, two weights a byte: [out / 16, in / 32, 4, 16, 4]."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.weight.shape[0] // LANES, self.weight.shape[1] // _GROUP, 4, LANES, 4)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def panels(self) -> Iterator[np.ndarray]:
        for rows in sixteens(self.weight):
            scales, least = (each.astype(np.float32)[..., None] for each in _rounded(rows))
            above = rows.reshape(len(rows), -1, _GROUP).astype(np.float32) - least
            steps = np.rint(np.divide(above, scales, out=np.zeros_like(above), where=scales > 0)).clip(0, _MOST).astype(np.uint8)
            pairs = steps.reshape(-1, LANES, self.shape[1], 4, 2, 4).transpose(0, 2, 3, 4, 1, 5)  # [.., group, pair, 2, 16, 4]
            yield pairs[:, :, :, 0] | pairs[:, :, :, 1] << 4


def _rounded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scales and the least values of groups, half precision [rows, in / 32]."""
    groups = rows.reshape(len(rows), -1, _GROUP).astype(np.float32)
    least = groups.min(-1)
    return ((groups.max(-1) - least) / _MOST).astype(np.float16), least.astype(np.float16)


def body(b: Body, x: str) -> str:
    """The product in standard operators; the name of its result. Sums over a group are whole numbers, and exact in float32."""
    last, group = b.constant("last", np.array([-1], np.int64)), b.constant("group", np.array([_GROUP], np.int64))
    sizes = b.add("Shape", ["scales"], "sizes")
    groups = b.add("Gather", [sizes, b.constant("one", np.array([1], np.int64))], "groups")
    # rows as whole numbers [groups, rows, 32], and the scale of each group [groups, rows, 1]
    in_groups = b.add("Reshape", [x, b.add("Concat", [last, groups, group], "group_shape", axis=0)], "in_groups")
    by_group = b.add("Transpose", [in_groups], "by_group", perm=[1, 0, 2])
    size = b.add("ReduceMax", [b.add("Abs", [by_group], "magnitudes"), last], "size", keepdims=1)
    positive = b.add("Max", [size, b.constant("smallest", np.array(LEAST, np.float32))], "positive")
    scale = b.add("Div", [positive, b.constant("full", np.array(127, np.float32))], "row_scales")
    steps = b.add("Round", [b.add("Div", [by_group, scale], "in_steps")], "steps")
    # the weights as whole numbers [groups, 32, out]
    bytes_ = b.add("Cast", ["weight"], "bytes", to=onnx.TensorProto.FLOAT)
    sixteen, axis = b.constant("sixteen", np.array(16, np.float32)), b.constant("axis", np.array([3], np.int64))
    upper = b.add("Floor", [b.add("Div", [bytes_, sixteen], "shifted")], "upper")
    lower = b.add("Sub", [bytes_, b.add("Mul", [upper, sixteen], "above")], "lower")
    halves = [b.add("Unsqueeze", [half, axis], f"{half}_alone") for half in (lower, upper)]
    turned = b.add("Transpose", [b.add("Concat", halves, "both", axis=3)], "turned", perm=[1, 2, 3, 5, 0, 4])
    matrix = b.add("Reshape", [turned, b.add("Concat", [groups, group, last], "matrix_shape", axis=0)], "matrix")
    # what scales are to be multiplied with, [groups, 1, out]
    single = b.add("Concat", [groups, b.constant("unit", np.array([1], np.int64)), last], "scale_shape", axis=0)
    scales, least = (
        b.add("Reshape", [b.add("Transpose", [b.add("Cast", [name], f"{name}_wide", to=onnx.TensorProto.FLOAT)], f"{name}_turned",
              perm=[1, 0, 2]), single], f"{name}_rows")
        for name in ("scales", "least")
    )  # fmt: skip
    dots = b.add("Mul", [b.add("MatMul", [steps, matrix], "dots"), b.add("Mul", [scales, scale], "both_scales")], "scaled_dots")
    sums = b.add("Mul", [b.add("ReduceSum", [steps, last], "step_sums", keepdims=1), scale], "sums")
    parts = b.add("Add", [dots, b.add("Mul", [least, sums], "from_least")], "parts")
    total = b.add("ReduceSum", [parts, b.constant("first", np.array([0], np.int64))], "total", keepdims=0)
    # [..., out]
    shape = b.add("Shape", [x], "shape", end=-1)
    return b.add("Reshape", [total, b.add("Concat", [shape, last], "result_shape", axis=0)], "scaled")
