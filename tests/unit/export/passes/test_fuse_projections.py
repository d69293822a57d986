"""Projections of one input as one matmul."""

from __future__ import annotations

import numpy as np

from ir_graphs import operators, parse, run
from jakiro_export.artifact.weights import Array, Transposed
from jakiro_export.passes.fuse_projections import fuse_projections

RANDOM = np.random.default_rng(0)
Q, K = RANDOM.random((6, 4)).astype(np.float32), RANDOM.random((2, 4)).astype(np.float32)  # [out, in]


def test_matmuls_of_one_input_become_one_and_a_split() -> None:
    text = (
        "g (float[3, 4] x, float[4, 6] q, float[4, 2] k) => (float[3, 6] a, float[3, 2] b) { a = MatMul(x, q) b = MatMul(x, k) }"
    )
    model = parse(text, q=Transposed(Array(Q)), k=Transposed(Array(K)))
    fuse_projections(model)
    assert operators(model) == ["MatMul", "Split"]
    assert sorted(model.graph.initializers) == ["q+k", "sizes_6_2"]
    assert [each.name for each in model.graph.outputs] == ["a", "b"]
    x = RANDOM.random((3, 4)).astype(np.float32)
    for found, matrix in zip(run(model, x=x), (Q, K), strict=True):
        np.testing.assert_allclose(found, x @ matrix.T, rtol=1e-5)


def test_matmuls_of_several_inputs_stay() -> None:
    text = "g (float[3, 4] x, float[3, 4] z, float[4, 6] q, float[4, 2] k) => (float[3, 6] a, float[3, 2] b)"
    model = parse(f"{text} {{ a = MatMul(x, q) b = MatMul(z, k) }}", q=Transposed(Array(Q)), k=Transposed(Array(K)))
    fuse_projections(model)
    assert operators(model) == ["MatMul", "MatMul"]
