"""Int4 by groups for GPUs (W4A16): weights around zero with a scale for 32, 64 or 128 inputs, activations as they are.

`DequantizeLinear` in blocks and `MatMul`, standard from opset 21 on, is what TensorRT multiplies without unpacking the weights in
memory. AWQ's and GPTQ's checkpoints are the same numbers and are taken as they are: a zero point adds the product of each group's
sum with what it takes off, act-order a permutation of the inputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from jakiro_export.artifact.weights import Array, Transposed, Weight
from jakiro_export.checkpoints.quantised import Packed
from jakiro_export.quantization.rounding import INT4, Late, Rounding, ShiftedRounding, Steps, packed

GROUPS = (128, 64, 32)  # by preference


class Weights4:
    """Weights in int4 by groups, activations as they are.

    Args:
        group: inputs that share a scale; None for the largest of GROUPS that fits
        search: scales by least squared error, else by the largest magnitude
        shifted: groups have an offset too, which costs a product with their sums and loses less
    """

    def __init__(self, name: str, group: int | None = None, search: bool = True, shifted: bool = False) -> None:
        self.name, self.group, self.search, self.shifted = name, group, search, shifted

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and shape[0] % 2 == 0 and self._group(shape[1]) is not None

    def _group(self, width: int) -> int | None:
        choices = GROUPS if self.group is None else (self.group,)
        return next((group for group in choices if width % group == 0), None)

    def initializers(self, matrix: Weight, name: str) -> dict[str, Weight]:
        columns, dtype = matrix.shape[1], matrix.dtype
        found = as_packed(matrix)
        if found is not None:
            made: dict[str, Weight] = {
                f"{name}.int4": Transposed(Steps(matrix.shape, INT4, lambda: iter([_steps(matrix)]))),
                f"{name}.scales": Transposed(Late(found.scales.shape, dtype, lambda: _scales(matrix))),
            }
            if found.zeros is not None:
                made[f"{name}.offsets"] = Transposed(Late(found.scales.shape, dtype, lambda: _offsets(matrix)))
            if found.order is not None:
                made[f"{name}.order"] = Array(found.order)
            return made
        group = self._group(columns)
        assert group is not None
        scales = (matrix.shape[0], columns // group)
        if self.shifted:
            moved = ShiftedRounding(matrix, group, dtype)
            return {
                f"{name}.int4": Transposed(Steps(matrix.shape, INT4, moved.steps)),
                f"{name}.scales": Transposed(Late(scales, dtype, lambda: moved.scales_and_offsets[0])),
                f"{name}.offsets": Transposed(Late(scales, dtype, lambda: moved.scales_and_offsets[1])),
            }
        rounding = Rounding(matrix, INT4, group, dtype, self.search)
        return {
            f"{name}.int4": Transposed(Steps(matrix.shape, INT4, rounding.steps)),
            f"{name}.scales": Transposed(Late(scales, dtype, lambda: rounding.scales)),
        }

    def matmul(self, data: ir.Value, weights: list[ir.Value]) -> list[ir.Node]:
        steps, scales, *more = weights
        columns, groups = _size(steps, 0), _size(scales, 0)
        nodes: list[ir.Node] = []
        order = next((each for each in more if each.dtype == ir.DataType.INT64), None)
        if order is not None:
            nodes.append(ir.node("Gather", [data, order], attributes={"axis": -1}))
            data = nodes[-1].outputs[0]
        matrix = ir.node("DequantizeLinear", [steps, scales], attributes={"axis": 0, "block_size": columns // groups})
        product = ir.node("MatMul", [data, matrix.outputs[0]])
        nodes += [matrix, product]
        offsets = next((each for each in more if each is not order), None)
        if offsets is not None:  # what the zero points take off: the sum of each group, times scale * -zero
            sizes = ir.node("Constant", [], attributes={"value_ints": [groups, columns // groups]})
            lead = ir.node("Shape", [data], attributes={"end": -1})
            shape = ir.node("Concat", [lead.outputs[0], sizes.outputs[0]], attributes={"axis": 0})
            last = ir.node("Constant", [], attributes={"value_ints": [-1]})
            split = ir.node("Reshape", [data, shape.outputs[0]])
            sums = ir.node("ReduceSum", [split.outputs[0], last.outputs[0]], attributes={"keepdims": 0})
            taken = ir.node("MatMul", [sums.outputs[0], offsets])
            nodes += [sizes, lead, shape, last, split, sums, taken]
            nodes.append(ir.node("Add", [product.outputs[0], taken.outputs[0]]))
        return nodes


def _size(value: ir.Value, axis: int) -> int:
    assert value.shape is not None
    return int(value.shape[axis])  # type: ignore[arg-type]


def as_packed(matrix: Weight) -> Packed | None:
    """A matrix that its checkpoint has in int4, in groups of at most 128; None where it is to be rounded here."""
    found = packed(matrix, "int4")
    group = next((each for each in GROUPS if found is not None and found.group % each == 0), None)
    if found is None or group is None:
        return None
    times = found.group // group
    zeros = None if found.zeros is None else np.repeat(found.zeros, times, 1)
    return replace(found, scales=np.repeat(found.scales, times, 1), zeros=zeros)


def _steps(matrix: Weight) -> np.ndarray:
    found = as_packed(matrix)
    assert found is not None
    return found.steps.astype(INT4)


def _scales(matrix: Weight) -> np.ndarray:
    found = as_packed(matrix)
    assert found is not None
    return found.scales


def _offsets(matrix: Weight) -> np.ndarray:
    """What zero points add to every weight of a group, -zero * scale, [out, groups]."""
    found = as_packed(matrix)
    assert found is not None
    assert found.zeros is not None
    return -found.zeros.astype(np.float32) * found.scales
