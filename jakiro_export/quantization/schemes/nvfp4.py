"""NVFP4 for GPUs of sm100 and newer: four-bit floats in blocks of 16 with an fp8 scale each and one scale for the matrix."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import onnx_ir as ir

from jakiro_export.artifact.weights import Transposed, Weight, pack
from jakiro_export.ops import DOMAIN, fp4
from jakiro_export.quantization.rounding import FP4, FP8, Late, Rounding, Steps, packed
from jakiro_export.quantization.schemes.row_scaled import row_constants, scaled_rows

_REACH = 448 * 6  # of a value in steps of the matrix's own scale


class Nvfp4:
    """Weights in NVFP4; activations too, or as they are.

    Args:
        activations: round rows to NVFP4, scaled by their largest magnitude
    """

    def __init__(self, name: str, activations: bool) -> None:
        self.name, self.activations = name, activations

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and shape[0] % 2 == 0 and shape[1] % fp4.BLOCK == 0

    def initializers(self, matrix: Weight, name: str) -> dict[str, Weight]:
        dtype, (rows, columns) = matrix.dtype, matrix.shape
        numbers = _Numbers(matrix)
        weights: dict[str, Weight] = {
            f"{name}.fp4": Transposed(_Pairs(Steps(matrix.shape, FP4, numbers.steps))),
            f"{name}.scales": Transposed(Late((rows, columns // fp4.BLOCK), FP8, numbers.scales)),
            f"{name}.shared": Late((), dtype, numbers.shared),
        }
        if self.activations:
            weights |= row_constants(dtype)
        return weights

    def matmul(self, data: ir.Value, weights: list[ir.Value]) -> list[ir.Node]:
        steps, small, shared, *constants = weights
        scales = ir.node("DequantizeLinear", [small, shared])
        assert shared.dtype is not None
        scales.outputs[0].dtype = shared.dtype  # bodies are written for a type
        matrix = ir.node(fp4.DEQUANTIZE, [scales.outputs[0], steps], domain=DOMAIN)
        if not constants:
            return [scales, matrix, ir.node("MatMul", [data, matrix.outputs[0]])]
        nodes, magnitude = scaled_rows(data, constants)
        nodes[-1].outputs[0].dtype = shared.dtype
        rounded = ir.node(fp4.ROUND, [nodes[-1].outputs[0]], domain=DOMAIN)
        product = ir.node("MatMul", [rounded.outputs[0], matrix.outputs[0]])
        return [*nodes, rounded, scales, matrix, product, ir.node("Mul", [product.outputs[0], magnitude])]


class _Numbers:
    """The three tensors of a matrix: as its checkpoint has them, or rounded here."""

    def __init__(self, matrix: Weight) -> None:
        self.matrix = matrix
        self._rounding = lru_cache(maxsize=1)(self._round)

    def _round(self) -> Rounding:
        largest = max((float(np.abs(panel.astype(np.float32)).max()) for panel in self.matrix.panels()), default=0.0)
        shared = np.float32(np.array(max(largest / _REACH, 2.0**-24), self.matrix.dtype))
        return Rounding(self.matrix, FP4, fp4.BLOCK, FP8, search=True, shared=shared)

    def steps(self) -> Iterator[np.ndarray]:
        found = packed(self.matrix, "fp4")
        return iter([found.steps]) if found is not None else self._rounding().steps()

    def scales(self) -> np.ndarray:
        found = packed(self.matrix, "fp4")
        return found.scales if found is not None else self._rounding().scales

    def shared(self) -> np.ndarray:
        found = packed(self.matrix, "fp4")
        return np.array(found.shared if found is not None else self._rounding().shared)


class _Pairs:
    """Four-bit values [out, in] as bytes [out / 2, in], the first of two outputs in the lower bits; to be transposed."""

    dtype = np.dtype(np.uint8)

    def __init__(self, steps: Steps) -> None:
        self.steps, self.shape = steps, (steps.shape[0] // 2, steps.shape[1])

    def panels(self) -> Iterator[np.ndarray]:
        for rows in self.steps.panels():
            yield pack(np.ascontiguousarray(rows.T)).T
