"""Matmuls in the schemes of a recipe, and what joins them."""

from __future__ import annotations

import numpy as np
import pytest

from ir_graphs import operators, parse, run
from jakiro_export.artifact.weights import Array, Transposed, Weight
from jakiro_export.passes.fuse_into_matmuls import fuse_into_matmuls
from jakiro_export.passes.quantize_matmuls import quantize_matmuls
from jakiro_export.quantization.recipe import RECIPES, Recipe, Rule

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((48, 64)).astype(np.float32)  # [out, in]
X = RANDOM.standard_normal((2, 3, 64)).astype(np.float32)


def transposed() -> Weight:
    return Transposed(Array(W))


def matmul(before: str = "a = Identity(x)", after: str = "y = Identity(m)", more: str = "", **weights: np.ndarray):  # type: ignore[no-untyped-def]
    text = f"g (float[batch, rows, 64] x, float[64, 48] w{more}) => (float[batch, rows, 48] y)"
    return parse(f"{text} {{ {before} m = MatMul(a, w) {after} }}", w=transposed(), **weights)


@pytest.mark.parametrize(("precision", "operator"), [("int8", "RowInt8MatMul"), ("int4", "RowInt4MatMul")])
def test_a_matmul_becomes_its_schemes_operator(precision: str, operator: str) -> None:
    model = parse(
        "g (float[batch, rows, 64] x, float[64, 48] w) => (float[batch, rows, 48] y) { y = MatMul(x, w) }", w=transposed()
    )
    quantize_matmuls(model, RECIPES[precision])
    assert operators(model) == [operator]
    assert "w" not in model.graph.initializers
    exact = X @ W.T
    assert np.abs(run(model, x=X)[0] - exact).mean() < {"int8": 0.02, "int4": 0.1}[precision] * np.abs(exact).mean()


def test_a_gemm_keeps_its_bias() -> None:
    bias = RANDOM.standard_normal(48).astype(np.float32)
    text = "g (float[rows, 64] x, float[48, 64] w, float[48] b) => (float[rows, 48] y) { y = Gemm<transB = 1>(x, w, b) }"
    model = parse(text, w=W, b=bias)
    quantize_matmuls(model, RECIPES["int8"])
    assert operators(model) == ["RowInt8MatMul", "Add"]
    np.testing.assert_allclose(run(model, x=X[0])[0], X[0] @ W.T + bias, atol=0.3)


@pytest.mark.parametrize("recipe", [Recipe(()), Recipe((Rule("w", ()), Rule("*", ("int8",))))])
def test_a_matrix_without_a_scheme_stays(recipe: Recipe) -> None:
    model = matmul()
    quantize_matmuls(model, recipe)
    assert operators(model) == ["Identity", "MatMul", "Identity"]


def test_a_matmul_of_two_activations_stays() -> None:
    model = parse("g (float[3, 64] x, float[64, 48] z) => (float[3, 48] y) { y = MatMul(x, z) }")
    quantize_matmuls(model, RECIPES["int8"])
    assert operators(model) == ["MatMul"]


NORM, GAIN = "a = RMSNormalization<axis = -1, epsilon = 0.01>(x, gain)", np.linspace(0.5, 2, 64).astype(np.float32)
SUM = "s = ReduceSum<keepdims = 0>(a) y = Add(m, s)"  # reads the norm too
RESIDUAL = ", float[batch, rows, 48] r"


@pytest.mark.parametrize(
    ("before", "after", "more", "expected"),
    [
        (NORM, "y = Identity(m)", ", float[64] gain", ["NormRowInt8MatMul", "Identity"]),
        ("a = Identity(x)", "y = Add(m, r)", RESIDUAL, ["Identity", "RowInt8MatMulAdd"]),
        ("a = Identity(x)", "y = Add(r, m)", RESIDUAL, ["Identity", "RowInt8MatMulAdd"]),
        # a form for norm and residual together there is not
        (NORM, "y = Add(m, r)", ", float[64] gain" + RESIDUAL, ["NormRowInt8MatMul", "Add"]),
        # what others read too is computed for them
        (NORM, SUM, ", float[64] gain", ["RMSNormalization", "ReduceSum", "RowInt8MatMul", "Add"]),
        # a bias is no residual
        ("a = Identity(x)", "y = Add(m, r)", ", float[48] r", ["Identity", "RowInt8MatMul", "Add"]),
    ],
)  # fmt: skip
def test_what_comes_before_and_after_a_matmul_joins_it(before: str, after: str, more: str, expected: list[str]) -> None:
    def make():  # type: ignore[no-untyped-def]
        return matmul(before, after, more, **({"gain": GAIN} if "gain" in more else {}))

    inputs = {"x": X}
    if " r" in more:
        inputs["r"] = RANDOM.standard_normal((2, 3, 48) if more.endswith(RESIDUAL) else 48).astype(np.float32)
    alone, joined = make(), make()
    for model in (alone, joined):
        quantize_matmuls(model, RECIPES["int8"])
    fuse_into_matmuls(joined)
    assert sorted(operators(joined)) == sorted(expected)
    np.testing.assert_allclose(run(joined, **inputs)[0], run(alone, **inputs)[0], rtol=1e-4, atol=1e-4)


def test_swiglu_joins_the_matmul_after_it() -> None:
    text = (
        "g (float[batch, rows, 128] x, float[64, 48] w) => (float[batch, rows, 48] y) { a = jakiro.SwiGlu(x) y = MatMul(a, w) }"
    )
    model = parse(text, w=transposed())
    quantize_matmuls(model, RECIPES["int4"])
    fuse_into_matmuls(model)
    assert operators(model) == ["SwiGluRowInt4MatMul"]
    assert [each.name for each in model.graph.outputs] == ["y"]
