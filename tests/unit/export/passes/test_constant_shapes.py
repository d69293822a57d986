"""Shapes of Reshape as constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ir_graphs import operators, parse
from jakiro_export.passes.constant_shapes import constant_shapes

TEXT = "g (float[batch, rows, 48] x, int64[n] s) => (float y) { y = Reshape(x, s) }"


def reshaped(*shape: int | str) -> ir.Model:
    """A Reshape to a shape that is computed, and that the tracer knows to be this one."""
    model = parse(TEXT.replace("float y", f"float[{', '.join(map(str, shape))}] y"))
    constant_shapes(model)
    return model


@pytest.mark.parametrize(
    ("shape", "written"),
    [
        (("batch", "rows", 6, 8), [0, 0, 6, 8]),
        (("batch_rows", 48), [-1, 48]),
        ((1, "unknown", 48), [1, -1, 48]),
    ],
)
def test_known_axes_are_written(shape: tuple[int | str, ...], written: list[int]) -> None:
    constants = reshaped(*shape).graph.initializers
    assert [value.const_value.numpy().tolist() for value in constants.values() if value.const_value is not None] == [written]


@pytest.mark.parametrize("shape", [("one", "two", 48), ("batch", "unknown", 8)])
def test_shapes_with_more_than_one_unknown_stay_computed(shape: tuple[int | str, ...]) -> None:
    """Nor do 0 and -1 occur together, which onnx's shape inference refuses."""
    model = reshaped(*shape)
    assert not model.graph.initializers
    assert operators(model) == ["Reshape"]


def test_equal_shapes_are_one_constant() -> None:
    model = parse(
        "g (float[batch, 48] x, int64[n] s, int64[n] t) => (float[batch, 6, 8] y, float[batch, 6, 8] z)"
        " { y = Reshape(x, s) z = Reshape(x, t) }"
    )
    constant_shapes(model)
    assert list(model.graph.initializers) == ["shape_0_6_8"]
    assert np.array_equal(model.graph.initializers["shape_0_6_8"].const_value.numpy(), [0, 6, 8])  # type: ignore[union-attr]
