"""What lies between the matmuls of a quantised layer becomes single operators: SplitHeads, SwiGlu, BestToken, joined heads.

With a few rows an operator costs more to start than to compute; the first two stand for a dozen in every layer. A graph that
computes something else between its matmuls (norms of queries and keys, biases) keeps its nodes.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from jakiro_export.ops import DOMAIN, best_token, split_heads, swiglu, tree_attention
from jakiro_export.passes.editing import add_int_constant, only_consumer, replace


def fuse_layers(model: ir.Model) -> None:
    """Replace what the operators compute, where it stands as the usual decoders have it. Float32 graphs only."""
    for node in list(model.graph):
        if node.op_type == "Split" and node.attributes.get_int("axis", 0) == -1:
            fuse = _split_heads if len(node.outputs) == 3 else _swiglu
            fuse(model, node)
        elif node.op_type == "ArgMax" and (node.attributes.get_int("axis", 0), node.attributes.get_int("keepdims", 1)) == (-1, 0):
            made = ir.node(best_token.NAME, [node.inputs[0]], domain=DOMAIN)
            model.graph.insert_before(node, [made])
            replace(node.outputs[0], made.outputs[0])
        elif node.op_type == tree_attention.NAME:
            _join_heads(node.outputs[0])
    common.TopologicalSortPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _split_heads(model: ir.Model, split: ir.Node) -> None:
    heads, rotations, results = [], [], []
    for number, output in enumerate(split.outputs):
        reshape = only_consumer(output, "Reshape")
        transpose = only_consumer(reshape.outputs[0], "Transpose") if reshape else None
        if reshape is None or transpose is None or transpose.attributes.get_ints("perm") != (0, 2, 1, 3):
            return
        shape = reshape.outputs[0].shape
        if shape is None or len(shape) != 4 or not isinstance(shape[2], int) or not isinstance(shape[3], int):
            return
        heads.append(shape[2])
        result = transpose.outputs[0]
        if number < 2:
            rotation = only_consumer(result, "RotaryEmbedding")
            if rotation is None or len(rotation.inputs) != 3:
                return
            if rotation.attributes.get_int("interleaved", 0) or rotation.attributes.get_int("rotary_embedding_dim", 0):
                return
            rotations.append(rotation)
            result = rotation.outputs[0]
        results.append(result)
    if len({tuple(rotation.inputs[1:]) for rotation in rotations}) != 1:
        return
    parts = add_int_constant(model, "parts", heads)
    made = ir.node(split_heads.NAME, [split.inputs[0], *rotations[0].inputs[1:], parts], domain=DOMAIN, num_outputs=3)
    model.graph.insert_before(rotations[0], [made])
    for old, new in zip(results, made.outputs, strict=True):
        replace(old, new)


def _join_heads(rows: ir.Value) -> None:
    """Attention returns its heads joined already: what takes them apart and joins them again does nothing."""
    last = rows
    while reshape := only_consumer(last, "Reshape"):
        last = reshape.outputs[0]
    if last is not rows and last.shape is not None and len(last.shape) == 3:
        replace(last, rows)


def _swiglu(model: ir.Model, split: ir.Node) -> None:
    if len(split.outputs) != 2:
        return
    gate, up = split.outputs
    sigmoid = next((use.node for use in gate.uses() if use.node.op_type == "Sigmoid"), None)
    silu = only_consumer(sigmoid.outputs[0], "Mul") if sigmoid else None
    last = only_consumer(silu.outputs[0], "Mul") if silu else None
    if silu is None or last is None or gate not in silu.inputs or up not in last.inputs:
        return
    if len(list(gate.uses())) != 2 or len(list(up.uses())) != 1:
        return
    made = ir.node(swiglu.NAME, [split.inputs[0]], domain=DOMAIN)
    model.graph.insert_before(last, [made])
    replace(last.outputs[0], made.outputs[0])
