"""A scheme is added by one class and a line of the registry; one that writes standard operators fits too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ir_graphs import operators, parse, run
from jakiro_export.artifact.weights import Array, Transposed, Weight
from jakiro_export.passes.quantize_matmuls import quantize_matmuls
from jakiro_export.quantization.recipe import Recipe, Rule
from jakiro_export.quantization.schemes import SCHEMES

W = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)  # [out, in]


class DequantizedInt8:
    """Int8 by output, dequantised by a standard operator before an ordinary MatMul."""

    name = "toy"

    def fits(self, shape: tuple[int, ...]) -> bool:
        return True

    def initializers(self, matrix: Weight, name: str) -> dict[str, Weight]:
        rows = np.concatenate(list(matrix.panels())).T
        scales = np.abs(rows).max(0) / np.float32(127)
        return {f"{name}.int8": Array(np.rint(rows / scales).astype(np.int8)), f"{name}.scales": Array(scales)}

    def matmul(self, data: ir.Value, weights: list[ir.Value]) -> list[ir.Node]:
        matrix = ir.node("DequantizeLinear", weights, attributes={"axis": 1})
        return [matrix, ir.node("MatMul", [data, matrix.outputs[0]])]


def test_a_new_scheme_is_a_class_and_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, "toy", DequantizedInt8())  # type: ignore[arg-type]
    text = "g (float[rows, 64] x, float[64, 48] w) => (float[rows, 48] y) { y = MatMul(x, w) }"
    model = parse(text, w=Transposed(Array(W)))
    quantize_matmuls(model, Recipe((Rule("w", ("toy",)),)))
    assert operators(model) == ["DequantizeLinear", "MatMul"]
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], x @ W.T, atol=0.6)
    assert not np.allclose(run(model, x=x)[0], x @ W.T, atol=1e-3)  # it is rounded
