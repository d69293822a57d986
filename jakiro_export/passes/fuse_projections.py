"""Projections of one input (query, key, value; gate and up) become one matmul, split afterwards."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from jakiro_export.artifact.weights import Transposed, stacked
from jakiro_export.passes.editing import add_initializer, add_int_constant, drop_unused_initializers, lazy_weight, replace


def fuse_projections(model: ir.Model) -> None:
    """One matmul for all that multiply the same activations with a constant matrix."""
    graph = model.graph
    by_input: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "MatMul" and isinstance(lazy_weight(node.inputs[1]), Transposed):
            assert node.inputs[0] is not None
            by_input.setdefault(node.inputs[0], []).append(node)
    for data, nodes in by_input.items():
        if len(nodes) < 2:
            continue
        values = [node.inputs[1] for node in nodes]
        weights = [weight for weight in map(lazy_weight, values) if weight is not None]
        widths = [weight.shape[1] for weight in weights]
        name = "+".join(str(value.name) for value in values if value is not None)
        matmul = ir.node("MatMul", [data, add_initializer(model, name, stacked(weights))])
        sizes = add_int_constant(model, "sizes", widths)
        split = ir.node("Split", [matmul.outputs[0], sizes], attributes={"axis": -1}, num_outputs=len(nodes))
        graph.insert_before(nodes[0], [matmul, split])
        for node, output in zip(nodes, split.outputs, strict=True):
            replace(node.outputs[0], output)
            graph.remove(node, safe=True)
    drop_unused_initializers(model)
    common.NameFixPass()(model)
