"""Int8 and fp8 by channel for GPUs: W8A8 with activations by row, and W8A16 with activations as they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from jakiro_export.artifact.weights import Array, Transposed, Weight
from jakiro_export.quantization.rounding import INT8, Late, Rounding, Steps, packed
from jakiro_export.quantization.schemes.row_scaled import row_constants, scaled_rows


class Bytes8:
    """Weights in int8 or fp8 (E4M3) with a scale for each output.

    Args:
        step: the type, int8 or float8_e4m3fn
        activations: multiply in that type, rows scaled by their largest magnitude; else activations stay as they are
    """

    def __init__(self, name: str, step: np.dtype, activations: bool) -> None:
        self.name, self.step, self.activations = name, step, activations

    @property
    def _kind(self) -> str:
        return "int8" if self.step == INT8 else "fp8"

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2

    def initializers(self, matrix: Weight, name: str) -> dict[str, Weight]:
        dtype, rows = matrix.dtype, (matrix.shape[0],)
        found = packed(matrix, self._kind)
        if found is not None and found.scales.shape[1] == 1:
            scales = found.scales
            weights: dict[str, Weight] = {
                f"{name}.{self._kind}": Transposed(
                    Steps(matrix.shape, self.step, lambda: iter([_packed_steps(matrix, self._kind)]))
                ),
                f"{name}.scales": Late(rows, dtype, lambda: scales[:, 0]),
            }
        else:
            rounding = Rounding(matrix, self.step, matrix.shape[1], dtype)
            weights = {
                f"{name}.{self._kind}": Transposed(Steps(matrix.shape, self.step, rounding.steps)),
                f"{name}.scales": Late(rows, dtype, lambda: rounding.scales[:, 0]),
            }
        if self.activations:
            # a row is within -1 to 1: 127 steps of int8, 256 of fp8, which reaches to 448
            step = np.array(1 / 127 if self.step == INT8 else 2.0**-8, dtype)
            weights[f"row.step.{self._kind}.{dtype.name}"] = Array(step)
            weights[f"row.zero.{self._kind}"] = Array(np.zeros((), self.step))
            weights |= row_constants(dtype)
        return weights

    def matmul(self, data: ir.Value, weights: list[ir.Value]) -> list[ir.Node]:
        steps, scales, *constants = weights
        matrix = ir.node("DequantizeLinear", [steps, scales], attributes={"axis": 1})
        if not constants:
            return [matrix, ir.node("MatMul", [data, matrix.outputs[0]])]
        step, zero = constants[:2]
        nodes, magnitude = scaled_rows(data, constants[2:])
        rounded = ir.node("QuantizeLinear", [nodes[-1].outputs[0], step, zero])
        values = ir.node("DequantizeLinear", [rounded.outputs[0], step, zero])
        product = ir.node("MatMul", [values.outputs[0], matrix.outputs[0]])
        return [*nodes, rounded, values, matrix, product, ir.node("Mul", [product.outputs[0], magnitude])]


def _packed_steps(matrix: Weight, kind: str) -> np.ndarray:
    found = packed(matrix, kind)
    assert found is not None
    return found.steps
