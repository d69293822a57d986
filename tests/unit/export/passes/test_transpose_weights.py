"""Weights written transposed instead of being transposed by the graph."""

from __future__ import annotations

import numpy as np

from ir_graphs import operators, parse, run
from jakiro_export.passes.transpose_weights import transpose_weights


def test_a_transposed_weight_is_written_transposed() -> None:
    w, x = np.random.default_rng(0).random((4, 3)).astype(np.float32), np.ones((2, 3), np.float32)
    model = parse("g (float[2, 3] x, float[4, 3] w) => (float[2, 4] y) { t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) }", w=w)
    transpose_weights(model)
    assert operators(model) == ["MatMul"]
    assert list(model.graph.initializers) == ["w.T"]
    np.testing.assert_allclose(run(model, x=x)[0], x @ w.T, rtol=1e-6)


def test_a_weight_that_is_read_as_it_is_too_stays() -> None:
    w = np.ones((3, 3), np.float32)
    text = (
        "g (float[3, 3] x, float[3, 3] w) => (float[3, 3] y) { t = Transpose<perm = [1, 0]>(w) a = MatMul(x, t) y = Add(a, w) }"
    )
    model = parse(text, w=w)
    transpose_weights(model)
    assert sorted(model.graph.initializers) == ["w", "w.T"]


def test_transposed_activations_are_left_alone() -> None:
    model = parse("g (float[2, 3] x) => (float[3, 2] y) { y = Transpose<perm = [1, 0]>(x) }")
    transpose_weights(model)
    assert operators(model) == ["Transpose"]
