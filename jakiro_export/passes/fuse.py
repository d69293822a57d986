"""What stands between an int8 layer's products, as single operators with bodies in standard operators.

    SplitHeads(qkv [batch, rows, heads * head_dim], cos, sin [batch, rows, head_dim / 2], parts [3])
        -> query, key, value [batch, parts[n], rows, head_dim], query and key rotated by halves
    SwiGlu(both [..., 2 * inner]) -> [..., inner]: silu of the first half times the second
    BestToken(logits [..., vocab]) -> int64 [...]: the first of the largest

With a few rows an operator costs more to start than to compute; the first two stand for a dozen in every layer. A graph that
computes something else between its products (norms of queries and keys, biases) keeps its nodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx_ir.passes import common

from jakiro_export.artifact.weights import Array
from jakiro_export.ops import DOMAIN, tree_attention
from jakiro_export.passes.simplify import add_initializer

SPLIT_HEADS, SWIGLU, BEST_TOKEN = "SplitHeads", "SwiGlu", "BestToken"


def _register(name: str, inputs: dict[str, str], outputs: list[str], kind: str = "float") -> None:
    schema = onnx.defs.OpSchema
    if not onnx.defs.has(name, DOMAIN):
        ins = [schema.FormalParameter(each, f"tensor({kind})") for each, kind in inputs.items()]
        outs = [schema.FormalParameter(each, f"tensor({kind})") for each in outputs]
        onnx.defs.register_schema(schema(name, DOMAIN, 1, inputs=ins, outputs=outs))


_HEADS_IN, _HEADS_OUT = {"qkv": "float", "cos": "float", "sin": "float", "parts": "int64"}, ["query", "key", "value"]
_register(SPLIT_HEADS, _HEADS_IN, _HEADS_OUT)
_register(SWIGLU, {"both": "float"}, ["y"])
_register(BEST_TOKEN, {"logits": "float"}, ["best_token"], "int64")


def functions(opset: int) -> list[onnx.FunctionProto]:
    """The operators' bodies in standard ONNX operators; SplitHeads needs opset 23."""

    def make(name: str, inputs: list[str], outputs: list[str], nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
        return helper.make_function(DOMAIN, name, inputs, outputs, nodes, [helper.make_opsetid("", opset)])

    def node(op: str, inputs: list[str], *outputs: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, list(outputs), **attributes)

    def ints(name: str, *values: int) -> onnx.NodeProto:
        return node("Constant", [], name, value=numpy_helper.from_array(np.array(values, np.int64), name))

    heads = [
        ints("keep", 0, 0, -1),
        ints("two", 2),
        node("Shape", ["cos"], "half", start=2, end=3),
        node("Mul", ["half", "two"], "dim"),
        node("Concat", ["keep", "dim"], "by_head", axis=0),
        node("Reshape", ["qkv", "by_head"], "rows_first"),
        node("Transpose", ["rows_first"], "heads_first", perm=[0, 2, 1, 3]),
        node("Split", ["heads_first", "parts"], "q", "k", "value", axis=1),
        node("RotaryEmbedding", ["q", "cos", "sin"], "query"),
        node("RotaryEmbedding", ["k", "cos", "sin"], "key"),
    ]
    made = [
        make(SWIGLU, ["both"], ["y"], swiglu_body("both", "y")),
        make(BEST_TOKEN, ["logits"], ["best_token"], [node("ArgMax", ["logits"], "best_token", axis=-1, keepdims=0)]),
    ]
    return [make(SPLIT_HEADS, list(_HEADS_IN), _HEADS_OUT, heads), *made] if opset >= 23 else made


def swiglu_body(both: str, y: str) -> list[onnx.NodeProto]:
    """SwiGlu in standard operators."""
    return [
        helper.make_node("Split", [both], ["gate", "up"], axis=-1, num_outputs=2),
        helper.make_node("Sigmoid", ["gate"], ["open"]),
        helper.make_node("Mul", ["gate", "open"], ["silu"]),
        helper.make_node("Mul", ["silu", "up"], [y]),
    ]


def fuse_layers(model: ir.Model) -> None:
    """Replace what the operators compute, where it stands as the usual decoders have it. Float32 graphs only."""
    for node in list(model.graph):
        if node.op_type == "Split" and node.attributes.get_int("axis", 0) == -1:
            fuse = _split_heads if len(node.outputs) == 3 else _swiglu
            fuse(model, node)
        elif node.op_type == "ArgMax" and (node.attributes.get_int("axis", 0), node.attributes.get_int("keepdims", 1)) == (-1, 0):
            made = ir.node(BEST_TOKEN, [node.inputs[0]], domain=DOMAIN)
            model.graph.insert_before(node, [made])
            take_over(node.outputs[0], made.outputs[0])
        elif node.op_type == tree_attention.NAME:
            _join_heads(node.outputs[0])
    common.TopologicalSortPass()(model)
    common.RemoveUnusedNodesPass()(model)


def only_use(value: ir.Value, op: str) -> ir.Node | None:
    """The node that alone uses a value, if it is of this kind."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].node.op_type == op else None


def _split_heads(model: ir.Model, split: ir.Node) -> None:
    heads, rotations, results = [], [], []
    for number, output in enumerate(split.outputs):
        reshape = only_use(output, "Reshape")
        turn = only_use(reshape.outputs[0], "Transpose") if reshape else None
        if reshape is None or turn is None or turn.attributes.get_ints("perm") != (0, 2, 1, 3):
            return
        shape = reshape.outputs[0].shape
        if shape is None or len(shape) != 4 or not isinstance(shape[2], int) or not isinstance(shape[3], int):
            return
        heads.append(shape[2])
        result = turn.outputs[0]
        if number < 2:
            rotation = only_use(result, "RotaryEmbedding")
            if rotation is None or len(rotation.inputs) != 3:
                return
            if rotation.attributes.get_int("interleaved", 0) or rotation.attributes.get_int("rotary_embedding_dim", 0):
                return
            rotations.append(rotation)
            result = rotation.outputs[0]
        results.append(result)
    if len({tuple(rotation.inputs[1:]) for rotation in rotations}) != 1:
        return
    name = "parts_" + "_".join(map(str, heads))
    parts = add_initializer(model, name, Array(np.array(heads, np.int64)))
    made = ir.node(SPLIT_HEADS, [split.inputs[0], *rotations[0].inputs[1:], parts], domain=DOMAIN, num_outputs=3)
    model.graph.insert_before(rotations[0], [made])
    for old, new in zip(results, made.outputs, strict=True):
        take_over(old, new)


def _join_heads(rows: ir.Value) -> None:
    """Attention's heads lie side by side already: what takes them apart and joins them again does nothing."""
    last = rows
    while reshape := only_use(last, "Reshape"):
        last = reshape.outputs[0]
    if last is not rows and last.shape is not None and len(last.shape) == 3:
        take_over(last, rows)


def _swiglu(model: ir.Model, split: ir.Node) -> None:
    if len(split.outputs) != 2:
        return
    gate, up = split.outputs
    sigmoid = next((use.node for use in gate.uses() if use.node.op_type == "Sigmoid"), None)
    silu = only_use(sigmoid.outputs[0], "Mul") if sigmoid else None
    product = only_use(silu.outputs[0], "Mul") if silu else None
    if silu is None or product is None or gate not in silu.inputs or up not in product.inputs:
        return
    if len(list(gate.uses())) != 2 or len(list(up.uses())) != 1:
        return
    made = ir.node(SWIGLU, [split.inputs[0]], domain=DOMAIN)
    model.graph.insert_before(product, [made])
    take_over(product.outputs[0], made.outputs[0])


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Everything that read `old`, the graph's outputs too, reads `new`."""
    new.shape, new.type = old.shape, old.type
    if old.is_graph_output():
        new.name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
