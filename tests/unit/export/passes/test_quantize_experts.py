"""Quantised experts."""

from __future__ import annotations

import numpy as np

from ir_graphs import operators, parse, run
from jakiro_export.artifact.weights import Array, Reshaped, Stacked
from jakiro_export.passes.quantize_experts import quantize_experts
from jakiro_export.quantization.recipe import RECIPES, Recipe

RANDOM = np.random.default_rng(0)
INNER, HIDDEN = 32, 48


def dispatch(experts: int, top_k: int):  # type: ignore[no-untyped-def]
    text = f"""g (float[rows, {HIDDEN}] x, float[rows, {experts + 2}] logits, float[{experts}, {2 * INNER}, {HIDDEN}] gate_up,
                  float[{experts}, {HIDDEN}, {INNER}] down) => (float[rows, {HIDDEN}] primary, float[rows, {HIDDEN}] contrast) {{
        primary, contrast = jakiro.ExpertDispatch<top_k = {top_k}, contrast = 1>(x, logits, gate_up, down)
    }}"""
    random = np.random.default_rng(1)

    def stacked(rows: int, columns: int) -> Reshaped:
        parts = (Array(random.standard_normal((rows, columns)).astype(np.float32) / 8) for _ in range(experts))
        return Reshaped(Stacked(tuple(parts)), (experts, rows, columns))

    return parse(text, gate_up=stacked(2 * INNER, HIDDEN), down=stacked(HIDDEN, INNER))


def test_two_experts_become_matmuls_of_their_scheme() -> None:
    inputs = {name: RANDOM.standard_normal((5, width)).astype(np.float32) for name, width in (("x", HIDDEN), ("logits", 4))}
    exact, model = run(dispatch(2, 2), **inputs), dispatch(2, 2)
    quantize_experts(model, RECIPES["int8"])
    matmul = "RowInt8MatMul"
    assert sorted(operators(model)) == sorted([matmul, "Split", "SwiGlu", "SwiGlu", matmul, matmul, "MixExperts"])
    for found, expected in zip(run(model, **inputs), exact, strict=True):
        assert np.abs(found - expected).mean() < 0.03 * np.abs(expected).mean()


def test_other_mixtures_stay() -> None:
    for model, recipe in ((dispatch(3, 3), "int8"), (dispatch(2, 1), "int8")):
        quantize_experts(model, RECIPES[recipe])
        assert operators(model) == ["ExpertDispatch"]
    model = dispatch(2, 2)
    quantize_experts(model, Recipe(()))
    assert operators(model) == ["ExpertDispatch"]
