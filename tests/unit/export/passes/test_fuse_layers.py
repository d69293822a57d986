"""What lies between the matmuls of a layer, as single operators, where it is what they compute."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ir_graphs import operators, parse, run
from jakiro_export.passes.fuse_layers import fuse_layers

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


GATED = """g (float[rows, 64] both) => (float[rows, 32] y) {
    gate, up = Split<axis = -1, num_outputs = 2>(both)
    open = Sigmoid(gate)
    silu = Mul(gate, open)
    y = Mul(silu, up)
}"""


def test_a_gate_and_its_product_become_swiglu() -> None:
    both, before, after = normal(3, 64), parse(GATED), parse(GATED)
    fuse_layers(after)
    assert operators(after) == ["SwiGlu"]
    np.testing.assert_allclose(run(after, both=both)[0], run(before, both=both)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Sigmoid(gate)", "Sigmoid(up)"),
        ("Mul(silu, up)", "Mul(silu, gate)"),
    ],
)
def test_what_is_not_quite_swiglu_stays(old: str, new: str) -> None:
    model, both = parse(GATED.replace(old, new)), normal(3, 64)
    expected = run(model, both=both)
    fuse_layers(model)
    assert "SwiGlu" not in operators(model)
    np.testing.assert_array_equal(run(model, both=both)[0], expected[0])


HEADS = """g (float[batch, rows, 80] qkv, float[batch, rows, 4] cos, float[batch, rows, 4] sin, int64[3] sizes,
           int64[4] many, int64[4] few)
    => (float[batch, 6, rows, 8] query, float[batch, 2, rows, 8] key, float[batch, 2, rows, 8] value) {
    q, k, v = Split<axis = -1>(qkv, sizes)
    qr = Reshape(q, many)
    kr = Reshape(k, few)
    vr = Reshape(v, few)
    qt = Transpose<perm = [0, 2, 1, 3]>(qr)
    kt = Transpose<perm = [0, 2, 1, 3]>(kr)
    value = Transpose<perm = [0, 2, 1, 3]>(vr)
    query = RotaryEmbedding(qt, cos, sin)
    key = RotaryEmbedding(kt, cos, sin)
}"""
SIZES = {"sizes": np.array([48, 16, 16]), "many": np.array([0, 0, 6, 8]), "few": np.array([0, 0, 2, 8])}


def heads(text: str = HEADS) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """The operators after the pass, and the results before and after."""
    inputs = {"qkv": normal(2, 3, 80), "cos": normal(2, 3, 4), "sin": normal(2, 3, 4)}
    before, after = (parse(text, **SIZES) for _ in range(2))
    for model in (before, after):
        for node in model.graph:
            if node.op_type == "Reshape":
                count = 6 if node.inputs[1] is model.graph.initializers["many"] else 2
                node.outputs[0].shape = ir.Shape(["batch", "rows", count, 8])
    fuse_layers(after)
    return operators(after), run(before, **inputs), run(after, **inputs)


def test_split_and_rotated_heads_become_one_operator() -> None:
    kinds, before, after = heads()
    assert kinds == ["SplitHeads"]
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("key = RotaryEmbedding(kt, cos, sin)", "key = RotaryEmbedding(kt, sin, cos)"),
        ("key = RotaryEmbedding(kt, cos, sin)", "key = RotaryEmbedding<interleaved = 1>(kt, cos, sin)"),
        ("query = RotaryEmbedding(qt, cos, sin)", "qn = Neg(qt) query = RotaryEmbedding(qn, cos, sin)"),  # a norm of queries
    ],
)
def test_heads_with_something_else_in_between_stay(old: str, new: str) -> None:
    kinds, before, after = heads(HEADS.replace(old, new))
    assert "SplitHeads" not in kinds
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_best_token_is_one_operator() -> None:
    text = "g (float[rows, 50] logits) => (int64[rows] token) { token = ArgMax<axis = -1, keepdims = 0>(logits) }"
    model, logits = parse(text), normal(4, 50)
    fuse_layers(model)
    assert operators(model) == ["BestToken"]
    assert [each.name for each in model.graph.outputs] == ["token"]
    np.testing.assert_array_equal(run(model, logits=logits)[0], logits.argmax(-1))
    kept = parse(text.replace("axis = -1", "axis = 0").replace("int64[rows]", "int64[50]"))
    fuse_layers(kept)
    assert operators(kept) == ["ArgMax"]
