"""Tree attention: rows that see a cache and some of the rows of this call. Int8 and int4 engines have it as one operator.

The body is `attention` in its bitwise form; it makes doubles of the cached values on every call. The runtime's kernel
(`jakiro_runtime/kernels/attention.cpp`) needs neither doubles nor a mask: it adds up in the order of positions, and reads no
empty slot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import opset23
from torch import Tensor

from jakiro_export.ops.attention import VALUE_ROUNDING, KVSegment, additive_mask, attention, cached_values, past_mask, tile_groups
from jakiro_export.ops.body import AttributeRef, Body
from jakiro_export.ops.operator import JAKIRO, Attribute, CallSite, Example, Operand, Operator

NAME = "TreeAttention"


def tree_attention(
    query: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    past_length: Tensor,
    visible: Tensor,
    scaling: float,
) -> Tensor:
    """Attention over a cache and the call's rows.

    Args:
        query: [batch, heads, rows, head_dim]
        past_key, past_value: [batch, kv_heads, capacity, head_dim]
        new_key, new_value: [batch, kv_heads, others, head_dim]
        past_length: filled slots of the cache, [batch]
        visible: which of the call's rows a row sees, [batch, rows, others]

    Returns:
        [batch, rows, heads * head_dim]
    """
    new_mask = tile_groups(additive_mask(visible, query.dtype), query.shape[1] // past_key.shape[1])
    segments = [
        KVSegment(past_key, cached_values(past_value, True), past_mask(past_key, past_length, query.dtype)),
        KVSegment(new_key, cached_values(new_value, True), new_mask),
    ]
    return attention(query, segments, scaling, True).transpose(1, 2).flatten(2)


@torch.library.custom_op("jakiro::tree_attention", mutates_args=())
def fused_tree_attention(
    query: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    past_length: Tensor,
    visible: Tensor,
    scaling: float,
) -> Tensor:
    """`tree_attention` as one node of a traced module, [batch, rows, heads, head_dim]: models join the heads themselves."""
    rows = tree_attention(query, past_key, past_value, new_key, new_value, past_length, visible, scaling)
    return rows.unflatten(2, (query.shape[1], query.shape[3]))


@fused_tree_attention.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


def _translation(
    query: Any, past_key: Any, past_value: Any, new_key: Any, new_value: Any, past_length: Any, visible: Any, scaling: float
) -> Any:
    flat = JAKIRO.TreeAttention(query, past_key, past_value, new_key, new_value, past_length, visible, scaling=scaling)
    # models take the heads apart to join them again; the pass `fuse_layers` drops both
    apart: Any = opset23.Constant(value_ints=[0, 0, query.shape[1], query.shape[3]])
    return opset23.Reshape(flat, apart)


def _body(b: Body, site: CallSite) -> tuple[str, ...]:
    float_, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    last, zero, lowest = b.constant([-1]), b.constant(0, np.float32), b.constant(np.finfo(np.float32).min)
    scaling = b.add("Constant", value_float=AttributeRef("scaling"))

    def rounded(tensor: str, step: str) -> str:
        return b.add("Sub", b.add("Add", tensor, step), step)

    # grouped queries lie next to each other: [batch, kv_heads, groups * rows, head_dim]
    kv_heads = b.size("past_key", 1)
    grouped = b.add("Concat", b.size("query", 0), kv_heads, last, b.size("query", 3), axis=0)
    query = b.add("Reshape", b.add("Mul", "query", scaling), grouped)
    # masks: [batch, 1, 1, capacity] and [batch, 1, groups * rows, rows]
    slots = b.add("Range", b.constant(0), b.add("Squeeze", b.size("past_key", 2)), b.constant(1))
    filled = b.add("Less", slots, b.add("Unsqueeze", "past_length", b.constant([1])))
    past = b.add("Unsqueeze", b.add("Where", filled, zero, lowest), b.constant([1, 2]))
    tiles = b.add("Concat", b.constant([1]), b.add("Div", b.size("query", 1), kv_heads), b.constant([1]), axis=0)
    new = b.add("Unsqueeze", b.add("Tile", b.add("Where", "visible", zero, lowest), tiles), b.constant([1]))

    def scores(key: str, mask: str) -> str:
        return b.add("Add", b.add("MatMul", query, b.add("Transpose", key, perm=[0, 1, 3, 2])), mask)

    every = b.add("Concat", scores("past_key", past), scores("new_key", new), axis=-1)
    # exact sums; see `attention`
    one = b.constant(1, np.float32)
    numerator = rounded(b.add("Exp", b.add("Sub", every, b.add("ReduceMax", every, last, keepdims=1))), one)
    total = b.cast(b.add("ReduceSum", b.cast(numerator, double), last, keepdims=1), float_)
    weights = b.cast(rounded(b.add("Div", numerator, total), one), double)
    sizes = b.add("Concat", b.size("past_key", 2), b.size("new_key", 2), axis=0)
    of_past, of_new = b.add_many("Split", weights, sizes, outputs=2, axis=-1)
    step = b.constant(VALUE_ROUNDING, np.float64)
    seen = [
        b.add("MatMul", part, rounded(b.cast(value, double), step))
        for part, value in ((of_past, "past_value"), (of_new, "new_value"))
    ]
    by_head = b.add("Reshape", b.cast(b.add("Add", *seen), float_), b.add("Shape", "query"))
    return (b.add("Reshape", b.add("Transpose", by_head, perm=[0, 2, 1, 3]), b.constant([0, 0, -1])),)


def _example(random: np.random.Generator) -> Example:
    batch, heads, kv_heads, rows, capacity, head_dim = 2, 6, 2, 5, 11, 8

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    return Example(
        {
            "query": normal(batch, heads, rows, head_dim),
            "past_key": normal(batch, kv_heads, capacity, head_dim),
            "past_value": normal(batch, kv_heads, capacity, head_dim),
            "new_key": normal(batch, kv_heads, rows, head_dim),
            "new_value": normal(batch, kv_heads, rows, head_dim),
            "past_length": random.integers(0, capacity + 1, batch),
            "visible": (random.random((batch, rows, rows)) < 0.4) | np.eye(rows, dtype=bool),
        },
        {"scaling": 0.3},
    )


_CACHE, _ROWS = "[batch, kv_heads, capacity, head_dim]", "[batch, kv_heads, others, head_dim]"
OPERATORS = (
    Operator(
        name=NAME,
        doc="Attention over a cache and the rows of this call, bit for bit the same wherever a key lies.",
        inputs=(
            Operand("query", "float", "[batch, heads, rows, head_dim]"),
            Operand("past_key", "float", _CACHE),
            Operand("past_value", "float", _CACHE),
            Operand("new_key", "float", _ROWS),
            Operand("new_value", "float", _ROWS),
            Operand("past_length", "int64", "[batch]"),
            Operand("visible", "bool", "[batch, rows, others]"),
        ),
        outputs=(Operand("y", "float", "[batch, rows, heads * head_dim]"),),
        attributes={"scaling": Attribute("float", "multiplies the scores")},
        eager=tree_attention,
        body=_body,
        translation=(torch.ops.jakiro.tree_attention.default, _translation),
        cpu_kernel=True,
        example=_example,
    ),
)
