"""Attention over a cache and the rows of the call as one ONNX operator, with a body in standard operators: int8 engines have it.

    TreeAttention(query [batch, heads, rows, head_dim], past_key, past_value [batch, kv_heads, capacity, head_dim],
                  new_key, new_value [batch, kv_heads, others, head_dim], past_length [batch], visible [batch, rows, others])
        -> [batch, rows, heads * head_dim]

The body is `graph.attention` in its bitwise form; it makes doubles of the cached values on every call. The runtime's kernel
(`jakiro_runtime/kernels/attention.cpp`) needs neither doubles nor a mask: it adds up in the order of positions, and reads no
empty slot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from jakiro_export.ops import DOMAIN
from jakiro_export.ops.attention import VALUE_ROUNDING

NAME = "TreeAttention"
_INPUTS = {
    **dict.fromkeys(("query", "past_key", "past_value", "new_key", "new_value"), "tensor(float)"),
    "past_length": "tensor(int64)",
    "visible": "tensor(bool)",
}


def _schema() -> onnx.defs.OpSchema:
    schema = onnx.defs.OpSchema
    return schema(
        NAME,
        DOMAIN,
        1,
        doc="Rows that see a cache and some of the rows beside them.",
        inputs=[schema.FormalParameter(name, kind) for name, kind in _INPUTS.items()],
        outputs=[schema.FormalParameter("y", "tensor(float)")],
        attributes=[schema.Attribute("scaling", schema.AttrType.FLOAT, "multiplies the scores")],
    )


if not onnx.defs.has(NAME, DOMAIN):
    onnx.defs.register_schema(_schema())


def function(opset: int) -> onnx.FunctionProto:
    """The operator's body in standard ONNX operators."""
    nodes: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str, output: str = "", outputs: int = 1, **attributes: Any) -> str:
        names = [f"{output or f'{op.lower()}_{len(nodes)}'}_{n}" for n in range(outputs)]
        nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0]

    def constant(value: Any) -> str:
        return add("Constant", value=numpy_helper.from_array(np.asarray(value)))

    def size(tensor: str, axis: int) -> str:
        return add("Shape", tensor, start=axis, end=axis + 1)

    def to(kind: int, tensor: str) -> str:
        return add("Cast", tensor, to=kind)

    def rounded(tensor: str, by: str) -> str:
        return add("Sub", add("Add", tensor, by), by)

    float_, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    last, zero, lowest = constant([-1]), constant(np.float32(0)), constant(np.finfo(np.float32).min)
    scaling = add("Constant")
    nodes[-1].attribute.append(onnx.AttributeProto(name="value_float", ref_attr_name="scaling", type=onnx.AttributeProto.FLOAT))
    # grouped queries side by side: [batch, kv_heads, groups * rows, head_dim]
    kv_heads = size("past_key", 1)
    grouped = add("Concat", size("query", 0), kv_heads, last, size("query", 3), axis=0)
    query = add("Reshape", add("Mul", "query", scaling), grouped)
    # masks: [batch, 1, 1, capacity] and [batch, 1, groups * rows, rows]
    slots = add("Range", constant(0), add("Squeeze", size("past_key", 2)), constant(1))
    filled = add("Less", slots, add("Unsqueeze", "past_length", constant([1])))
    past_mask = add("Unsqueeze", add("Where", filled, zero, lowest), constant([1, 2]))
    tiles = add("Concat", constant([1]), add("Div", size("query", 1), kv_heads), constant([1]), axis=0)
    new_mask = add("Unsqueeze", add("Tile", add("Where", "visible", zero, lowest), tiles), constant([1]))

    def scores(key: str, mask: str) -> str:
        return add("Add", add("MatMul", query, add("Transpose", key, perm=[0, 1, 3, 2])), mask)

    every = add("Concat", scores("past_key", past_mask), scores("new_key", new_mask), axis=-1)
    # exact sums; see `graph.attention`
    one = constant(np.float32(1))
    numerator = rounded(add("Exp", add("Sub", every, add("ReduceMax", every, last, keepdims=1))), one)
    total = to(float_, add("ReduceSum", to(double, numerator), last, keepdims=1))
    weights = to(double, rounded(add("Div", numerator, total), one))
    split = add("Split", weights, add("Concat", size("past_key", 2), size("new_key", 2), axis=0), outputs=2, axis=-1)
    step = constant(np.float64(VALUE_ROUNDING))
    seen = [
        add("MatMul", part, rounded(to(double, value), step))
        for part, value in ((split, "past_value"), (split[:-1] + "1", "new_value"))
    ]
    out = add("Reshape", to(float_, add("Add", *seen)), add("Shape", "query"))
    add("Reshape", add("Transpose", out, perm=[0, 2, 1, 3]), constant([0, 0, -1]))
    nodes[-1].output[:] = ["y"]
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, NAME, list(_INPUTS), ["y"], nodes, opsets, attributes=["scaling"])
