"""Int4 products by the project's own plugin: GroupMatMul in place of a matrix dequantised in blocks and the MatMul that reads it.

The weights' bytes stay where they are. The plugin takes them as int8: TensorRT hands no int4 to plugins.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto, helper

from jakiro_export.ops import DOMAIN

NAME = "GroupMatMul"
GROUPS = (32, 64, 128)


def group_matmuls(model: onnx.ModelProto) -> list[tuple[NodeProto, NodeProto]]:
    """The pairs that the plugin can take: DequantizeLinear of an int4 matrix [in, out], and a MatMul by it.

    A matrix may have several such products (the draft phase has one a level), and must have no other reader.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}

    def product(node: NodeProto, matrix: str) -> bool:
        return node.op_type == "MatMul" and node.input[1] == matrix and node.input[0] != matrix

    def taken(node: NodeProto) -> bool:
        found = node.output[0]
        return _fits(node, weights) and found not in outputs and all(product(each, found) for each in readers.get(found, ()))

    whole = {name for name in weights if all(taken(node) for node in readers.get(name, ()))}  # no other reader of its bytes
    matrices = {node.output[0]: node for node in model.graph.node if taken(node) and node.input[0] in whole}
    return [
        (matrices[node.input[1]], node) for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in matrices
    ]


def _fits(node: NodeProto, weights: dict[str, TensorProto]) -> bool:
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx") or len(node.input) != 2:
        return False
    weight, settings = weights.get(node.input[0]), {each.name: each.i for each in node.attribute}
    return (
        weight is not None
        and weight.data_type == TensorProto.INT4
        and len(weight.dims) == 2
        and weight.dims[1] % 8 == 0
        and settings.get("axis", 1) == 0
        and settings.get("block_size", 0) in GROUPS
    )


def with_plugin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with GroupMatMul nodes; changed in place."""
    pairs = group_matmuls(model)
    weights = {weight.name: weight for weight in model.graph.initializer}
    replaced = {product.output[0]: (matrix, product) for matrix, product in pairs}
    gone = {matrix.output[0] for matrix, _ in pairs}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.output[0] in gone:
            continue
        found = replaced.get(node.output[0])
        if found is None:
            nodes.append(node)
            continue
        matrix, product = found
        weight = weights[matrix.input[0]]
        if weight.data_type != TensorProto.INT8:  # the first of its products
            weight.data_type = TensorProto.INT8
            weight.dims[1] //= 2
        made = helper.make_node(NAME, [product.input[0], *matrix.input], product.output, domain=DOMAIN, plugin_namespace=DOMAIN)
        nodes.append(made)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if pairs and not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model
